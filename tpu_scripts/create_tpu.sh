#!/usr/bin/env bash
# Creates a TPU slice and waits until it is up. Does nothing if it is up already; replaces a slice
# that was taken away or failed.
#
#   tpu_scripts/create_tpu.sh [--dry-run]
#   TPU_TYPE=v3-32 TPU_SPOT=1 tpu_scripts/create_tpu.sh
#
# Variables and their defaults: see common.sh.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

main() {
  parse_flags "$@"
  [[ -n $TPU_RUNTIME ]] || die "TPU_TYPE: $TPU_TYPE is of no known kind; set TPU_RUNTIME too"
  if ((DRY_RUN)); then
    request
    return
  fi
  local state
  state=$(slice_state)
  if [[ $state == gone ]]; then
    say "$TPU_NAME was taken away; creating it again"
    "$ROOT/tpu_scripts/delete_tpu.sh"
    state=missing
  fi
  [[ $state != missing ]] || request
  while [[ $state != up ]]; do
    state=$(slice_state)
    case $state in
      up) ;;
      waiting)
        say "$TPU_NAME ($TPU_TYPE, $TPU_ZONE) is on its way"
        sleep "$POLL_SECONDS"
        ;;
      *) die "$TPU_NAME is $state after all; see gcloud compute tpus queued-resources list" ;;
    esac
  done
  say "$TPU_NAME is up"
}

request() {
  local spot=()
  ((!TPU_SPOT)) || spot=(--spot)
  if ((TPU_QUEUE)); then
    tpu queued-resources create "$TPU_NAME" --node-id="$TPU_NAME" \
      --accelerator-type="$TPU_TYPE" --runtime-version="$TPU_RUNTIME" "${spot[@]}"
  else
    tpu tpu-vm create "$TPU_NAME" \
      --accelerator-type="$TPU_TYPE" --version="$TPU_RUNTIME" "${spot[@]}"
  fi
}

main "$@"
