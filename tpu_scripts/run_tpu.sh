#!/usr/bin/env bash
# Runs a program on all workers of a slice until it is done, and shows what it prints.
#
#   tpu_scripts/run_tpu.sh [--dry-run] elq_jax.train --config configs/tpu_v3.py \
#       --workdir gs://my-bucket/runs/v3
#   tpu_scripts/run_tpu.sh [--dry-run] stop     asks the program to save and exit, and waits
#
# The program keeps running when the connection, or this script, ends; the same command watches it
# again. When it exits with status 75 (it was asked to stop, and saved), it is started again. When the
# slice was taken away, the slice is created and set up again, and the program resumes from its last
# checkpoint. Exits with 0 when the program is done, with 70 when it failed, with 69 when the workers
# are busy with another program.
#
# Variables and their defaults: see common.sh.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# Statuses of worker_run.sh, after sysexits.h.
readonly FAILED=70 BUSY=69 AGAIN=75

main() {
  parse_flags "$@"
  ((${#ARGUMENTS[@]})) || die "no program; see $0 --help"
  if [[ ${ARGUMENTS[0]} == stop ]]; then
    on_workers all "$(watched --stop)"
    return
  fi
  local command status state failures=0
  # JAX finds the other workers of a slice by itself.
  command=$(watched env ELQ_JAX_DISTRIBUTED=1 .venv/bin/python -m "${ARGUMENTS[@]}")
  if ((DRY_RUN)); then
    on_workers all "$command"
    return
  fi
  while true; do
    status=0
    on_workers all "$command" || status=$?
    ((status)) || return 0
    # What happened to a spot slice that is taken away is known a little later than the failure.
    ((status == AGAIN || !TPU_SPOT)) || sleep "$POLL_SECONDS"
    state=$(slice_state) || state=unknown
    if [[ $state == gone || $state == missing || $state == waiting ]]; then
      "$ROOT/tpu_scripts/create_tpu.sh"
      "$ROOT/tpu_scripts/setup_tpu.sh"
      failures=0
      continue
    fi
    case $status in
      "$AGAIN")
        say "the program was stopped and has saved; starting it again"
        failures=0
        ;;
      "$FAILED" | "$BUSY") exit "$status" ;;
      *)
        # The connection: a program on a worker ends with one of the statuses above.
        ((++failures <= MAX_RETRIES)) || die "no connection to $TPU_NAME (status $status)"
        say "no connection to $TPU_NAME (status $status); trying again"
        sleep "$POLL_SECONDS"
        ;;
    esac
  done
}

main "$@"
