#!/usr/bin/env bash
# Copies a run's results to this machine, without its checkpoints. From gs://, a second call copies
# only the files that have changed.
#
#   tpu_scripts/copy_results.sh [--dry-run] gs://my-bucket/runs/v3 runs/v3
#   tpu_scripts/copy_results.sh runs/v3 runs/v3      from the first worker of the slice
#
# Variables and their defaults: see common.sh.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

main() {
  parse_flags "$@"
  ((${#ARGUMENTS[@]} == 2)) || die "expected a source and a target; see $0 --help"
  local source=${ARGUMENTS[0]%/} target=${ARGUMENTS[1]%/}
  run mkdir -p "$target"
  if [[ $source == gs://* ]]; then
    run gcloud storage rsync --recursive --exclude='.*/checkpoints/.*' "$source" "$target"
    return
  fi
  # One archive: gcloud's scp copies whole folders, checkpoints too.
  on_workers 0 "tar -czf results.tar.gz --exclude=checkpoints -C $(quoted "$REMOTE/$source") ."
  tpu tpu-vm scp "$TPU_NAME:results.tar.gz" "$target/results.tar.gz" --worker=0
  run tar -xzf "$target/results.tar.gz" -C "$target"
  run rm "$target/results.tar.gz"
}

main "$@"
