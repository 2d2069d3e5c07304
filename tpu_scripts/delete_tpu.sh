#!/usr/bin/env bash
# Deletes a TPU slice, and its place in the queue. Does nothing if there is none.
#
#   tpu_scripts/delete_tpu.sh [--dry-run]
#
# Variables and their defaults: see common.sh.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

main() {
  parse_flags "$@"
  if ((DRY_RUN)); then
    if ((TPU_QUEUE)); then delete_queued; else delete_slice; fi
    return
  fi
  # Whatever the variables say now, since a forgotten slice keeps costing money.
  local queued slice
  queued=$(listed queued-resources state.state)
  slice=$(listed tpu-vm state)
  if [[ -n $queued ]]; then
    delete_queued
  elif [[ -n $slice ]]; then
    delete_slice
  else
    say "$TPU_NAME: nothing to delete in $TPU_ZONE"
  fi
}

delete_queued() {
  tpu queued-resources delete "$TPU_NAME" --force --quiet
}

delete_slice() {
  tpu tpu-vm delete "$TPU_NAME" --quiet
}

main "$@"
