#!/usr/bin/env bash
# Code that the scripts of this folder share: settings, --dry-run, and access to a slice.
# shellcheck disable=SC2034  # The settings are used by the scripts that source this file.
set -euo pipefail

# Settings: variables of the environment, with these defaults.
: "${TPU_NAME:=elq-jax}"
: "${TPU_TYPE:=v3-8}"           # gcloud compute tpus accelerator-types list --zone=$TPU_ZONE
: "${TPU_ZONE:=europe-west4-a}"
: "${TPU_SPOT:=0}"              # 1: a cheap slice, which can be taken away at any moment
: "${TPU_QUEUE:=$TPU_SPOT}"     # 1: wait in the queue until there is room (queued resource)
: "${TPU_RUNTIME:=}"            # operating system of the slice; by default the usual one of its type
: "${PROJECT:=}"                # Google Cloud project; by default gcloud's
: "${DATA:=}"                   # gs:// folder that setup copies to data/ of every worker
: "${POLL_SECONDS:=30}"         # seconds between two looks at a slice that is not up yet
: "${MAX_RETRIES:=10}"          # connections that fail one after another before run gives up

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
REMOTE=elq_jax                  # folder on the workers, in the home folder
DRY_RUN=0

if [[ -z $TPU_RUNTIME ]]; then
  case $TPU_TYPE in
    v2-* | v3-* | v4-*) TPU_RUNTIME=tpu-ubuntu2204-base ;;
    v5litepod-*) TPU_RUNTIME=v2-alpha-tpuv5-lite ;;
    v5p-*) TPU_RUNTIME=v2-alpha-tpuv5 ;;
    v6e-*) TPU_RUNTIME=v2-alpha-tpuv6e ;;
  esac
fi

# Prints the comment at the top of the script: its documentation.
usage() {
  sed -n '2,/^[^#]/{s/^# \{0,1\}//p}' "$0"
}

die() {
  echo "error: $*" >&2
  exit 2
}

say() {
  echo "$*" >&2
}

# parse_flags "$@": takes --dry-run and --help from the front; the rest is in ARGUMENTS.
parse_flags() {
  while (($#)); do
    case $1 in
      --dry-run) DRY_RUN=1 ;;
      -h | --help)
        usage
        exit 0
        ;;
      --)
        shift
        break
        ;;
      -*) die "$1: unknown option; see $0 --help" ;;
      *) break ;;
    esac
    shift
  done
  ARGUMENTS=("$@")
}

# quoted COMMAND...: one line that a shell reads as the same words.
quoted() {
  local word line=
  for word in "$@"; do
    [[ $word =~ ^[A-Za-z0-9_./:=@%+,-]+$ ]] || word=${word@Q}
    line+="$word "
  done
  echo "${line% }"
}

# run COMMAND...: runs it; with --dry-run prints it instead.
run() {
  if ((DRY_RUN)); then
    quoted "$@"
  else
    "$@"
  fi
}

# where: the flags that say which project and zone.
where() {
  echo "--zone=$1"
  [[ -z $PROJECT ]] || echo "--project=$PROJECT"
}

# tpu GROUP COMMAND ARGUMENTS...: gcloud on the slice's zone.
tpu() {
  local flags
  mapfile -t flags < <(where "$TPU_ZONE")
  run gcloud compute tpus "$@" "${flags[@]}"
}

# listed GROUP FIELD: a field of the slice in `gcloud compute tpus GROUP list`, empty if it is not
# there. (`describe` fails alike for a slice that is not there and for a network that is not.)
listed() {
  local flags
  mapfile -t flags < <(where "$TPU_ZONE")
  gcloud compute tpus "$1" list "${flags[@]}" \
    --filter="name ~ /$TPU_NAME\$" --format="value($2)"
}

# slice_state: up, waiting, gone (taken away or failed; its name is still in use) or missing; fails
# where Google cannot be asked.
slice_state() {
  local state
  if ((TPU_QUEUE)); then
    state=$(listed queued-resources state.state) || return
    case $state in
      '') echo missing && return ;;
      ACTIVE) ;;
      SUSPENDING | SUSPENDED | FAILED | DELETING) echo gone && return ;;
      *) echo waiting && return ;;
    esac
  fi
  state=$(listed tpu-vm state) || return
  case $state in
    READY) echo up ;;
    '') if ((TPU_QUEUE)); then echo waiting; else echo missing; fi ;;
    PREEMPTED | TERMINATED | STOPPED | STOPPING | DELETING) echo gone ;;
    *) echo waiting ;;
  esac
}

# on_workers WORKER COMMAND: runs a shell command on one worker (0, 1, ...) or on all at once; the
# status is that of the command, of the first worker where it failed.
on_workers() {
  tpu tpu-vm ssh "$TPU_NAME" --worker="$1" --command="$2"
}

# pack: the working tree, without what git ignores, as an archive. Prints its path.
pack() {
  local archive="${TMPDIR:-/tmp}/$TPU_NAME.tar.gz"
  if ((!DRY_RUN)); then
    (cd "$ROOT" && git ls-files -z --cached --others --exclude-standard |
      tar --null --files-from=- --ignore-failed-read -czf "$archive")
  fi
  echo "$archive"
}

# unpack_and_install ACCELERATOR: the command that sets a worker up from the archive.
unpack_and_install() {
  local command="mkdir -p $REMOTE && tar -xzf $TPU_NAME.tar.gz -C $REMOTE && cd $REMOTE"
  command+=" && bash tpu_scripts/worker_setup.sh $1"
  [[ -z $DATA ]] || command+=" $(quoted "$DATA")"
  echo "$command"
}

# watched COMMAND...: prints the command that starts a program on a worker, or watches it again.
watched() {
  echo "cd $REMOTE && bash tpu_scripts/worker_run.sh $(quoted "$@")"
}
