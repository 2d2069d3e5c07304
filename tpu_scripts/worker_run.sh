#!/usr/bin/env bash
# Runs a program on a worker so that it outlives the connection; runs in the root of the repository.
#
#   bash tpu_scripts/worker_run.sh COMMAND...   starts it, shows its output, waits for it
#   bash tpu_scripts/worker_run.sh --stop       asks it to save and exit, waits for it
#
# Called again with the same command, it watches the running program, or reports how it ended.
# Exits with 0 when the program is done, 75 when it asks to be started again, 70 when it failed, and
# 69, without starting anything, when another program is running.
set -euo pipefail

folder=${WORKER_RUN_FOLDER:-$HOME/.elq_jax_run} # pid, command, log, status
readonly FAILED=70 BUSY=69 AGAIN=75
mkdir -p "$folder"

is_running() {
  [[ -f $folder/pid && $(ps -ww -o args= -p "$(<"$folder/pid")") == *worker_run* ]]
}

start() {
  rm -f "$folder/status"
  echo "$*" >"$folder/command"
  : >"$folder/log"
  # In a session of its own, with nothing of the connection's. The shell stays when both are asked
  # to stop, to note the program's status.
  # shellcheck disable=SC2016  # Expanded by the inner shell.
  setsid bash -c '
    trap : TERM
    "${@:2}"
    echo $? >"$1/status.new"
    mv "$1/status.new" "$1/status"
  ' worker_run "$folder" "$@" >"$folder/log" 2>&1 </dev/null &
  echo $! >"$folder/pid"
}

# Shows the log from a line on until the program has ended, then reports its status, once.
watch() {
  tail -s 0.2 -n "$1" --pid="$(<"$folder/pid")" -f "$folder/log"
  local status=$AGAIN # The worker was started anew meanwhile.
  [[ ! -f $folder/status ]] || status=$(<"$folder/status")
  rm -f "$folder/status" "$folder/pid"
  case $status in
    0 | "$AGAIN") exit "$status" ;;
    *)
      echo "the program failed with status $status; its output is in $folder/log" >&2
      exit "$FAILED"
      ;;
  esac
}

if [[ ${1-} == --stop ]]; then
  is_running || exit 0
  pid=$(<"$folder/pid")
  kill -TERM -- "-$pid"
  tail -s 0.2 --pid="$pid" -f /dev/null
  exit 0
fi

if is_running && [[ $(<"$folder/command") != "$*" ]]; then
  echo "error: $(hostname) is busy with: $(<"$folder/command")" >&2
  exit "$BUSY"
fi
if [[ -f $folder/pid && $(<"$folder/command") == "$*" ]]; then
  watch 20
fi
start "$@"
watch +1
