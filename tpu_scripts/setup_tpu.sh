#!/usr/bin/env bash
# Copies the working tree to every worker of a slice and installs jax[tpu] and the pinned packages
# there. Packages that are installed already are not installed again.
#
#   tpu_scripts/setup_tpu.sh [--dry-run]
#   DATA=gs://my-bucket/data tpu_scripts/setup_tpu.sh
#
# Variables and their defaults: see common.sh.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

main() {
  parse_flags "$@"
  local archive
  archive=$(pack)
  tpu tpu-vm scp "$archive" "$TPU_NAME:$TPU_NAME.tar.gz" --worker=all
  on_workers all "$(unpack_and_install tpu)"
}

main "$@"
