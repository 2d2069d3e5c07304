#!/usr/bin/env bash
# Creates a machine with a GPU on Google Compute Engine, runs programs on it, and deletes it.
#
#   tpu_scripts/gpu_machine.sh [--dry-run] create
#   tpu_scripts/gpu_machine.sh [--dry-run] setup
#   tpu_scripts/gpu_machine.sh [--dry-run] run elq_jax.train --config configs/gpu.py --workdir runs/gpu
#   tpu_scripts/gpu_machine.sh [--dry-run] copy runs/gpu runs/gpu
#   tpu_scripts/gpu_machine.sh [--dry-run] delete
#
# `run` behaves as run_tpu.sh does, except when the machine was taken away: then start it again with
# `create` (its disk is kept) before `run`. On a machine of your own, `bash tpu_scripts/worker_setup.sh cuda12`
# installs the same packages.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

: "${GPU_NAME:=elq-jax-gpu}"
: "${GPU_ZONE:=us-central1-a}"
: "${GPU_MACHINE:=a2-highgpu-1g}" # one A100 with 40 GB
: "${GPU_SPOT:=0}"
: "${GPU_DISK_GB:=200}"
: "${GPU_IMAGE_PROJECT:=ubuntu-os-accelerator-images}" # Ubuntu with NVIDIA's driver
: "${GPU_IMAGE_FAMILY:=ubuntu-accelerator-2204-amd64-with-nvidia-580}"
TPU_NAME=$GPU_NAME # of the archive

main() {
  parse_flags "$@"
  local action=${ARGUMENTS[0]-}
  ARGUMENTS=("${ARGUMENTS[@]:1}")
  case $action in
    create | setup | run | copy | delete) "${action}_machine" ;;
    *) die "${action:-no action}; expected create, setup, run, copy or delete" ;;
  esac
}

# compute COMMAND ARGUMENTS...: gcloud on the machine's zone.
compute() {
  local flags
  mapfile -t flags < <(where "$GPU_ZONE")
  run gcloud compute "$@" "${flags[@]}"
}

on_machine() {
  compute ssh "$GPU_NAME" --command="$1"
}

machine_state() {
  ((!DRY_RUN)) || return 0
  local project=()
  [[ -z $PROJECT ]] || project=(--project="$PROJECT")
  gcloud compute instances list --zones="$GPU_ZONE" "${project[@]}" \
    --filter="name ~ ^$GPU_NAME\$" --format='value(status)'
}

create_machine() {
  local state spot=()
  state=$(machine_state)
  case $state in
    RUNNING) say "$GPU_NAME is up" && return ;;
    '') ;;
    *) compute instances start "$GPU_NAME" && return ;;
  esac
  ((!GPU_SPOT)) || spot=(--provisioning-model=SPOT --instance-termination-action=STOP)
  compute instances create "$GPU_NAME" --machine-type="$GPU_MACHINE" \
    --image-family="$GPU_IMAGE_FAMILY" --image-project="$GPU_IMAGE_PROJECT" \
    --boot-disk-size="${GPU_DISK_GB}GB" --maintenance-policy=TERMINATE \
    --scopes=cloud-platform "${spot[@]}"
}

setup_machine() {
  local archive
  archive=$(pack)
  compute scp "$archive" "$GPU_NAME:$TPU_NAME.tar.gz"
  on_machine "$(unpack_and_install cuda12)"
}

run_machine() {
  ((${#ARGUMENTS[@]})) || die "no program; see $0 --help"
  local command status=75
  command=$(watched .venv/bin/python -m "${ARGUMENTS[@]}")
  while ((status == 75)); do # saved, and asks to be started again
    status=0
    on_machine "$command" || status=$?
  done
  return "$status"
}

copy_machine() {
  ((${#ARGUMENTS[@]} == 2)) || die "expected a source and a target; see $0 --help"
  local source=${ARGUMENTS[0]%/} target=${ARGUMENTS[1]%/}
  run mkdir -p "$target"
  on_machine "tar -czf results.tar.gz --exclude=checkpoints -C $(quoted "$REMOTE/$source") ."
  compute scp "$GPU_NAME:results.tar.gz" "$target/results.tar.gz"
  run tar -xzf "$target/results.tar.gz" -C "$target"
  run rm "$target/results.tar.gz"
}

delete_machine() {
  local state
  state=$(machine_state)
  if ((!DRY_RUN)) && [[ -z $state ]]; then
    say "$GPU_NAME: nothing to delete in $GPU_ZONE"
    return
  fi
  compute instances delete "$GPU_NAME" --quiet
}

main "$@"
