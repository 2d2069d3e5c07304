"""Trains a linker.

    python -m elq_jax.train --config configs/webqsp.py --workdir runs/webqsp

Settings are in the configuration file (configs/default.py lists them all); any of them can be
changed on the command line: --config.joint.batch_size=128. The result is `workdir`/linker, a
directory that the other programs take as --linker. Metrics go to metrics.jsonl and curves.png in
the folder of each stage.

Stopped by SIGTERM or Ctrl-C, it saves and exits with status 75; killed in any other way, it loses
what came after the last checkpoint. The same command resumes from there.

On several hosts, start the same command on each of them, with JAX_COORDINATOR_ADDRESS (host:port of
the first), JAX_NUM_PROCESSES and JAX_PROCESS_ID set, or ELQ_JAX_DISTRIBUTED=1 where JAX knows the
others by itself (TPU slices, Slurm). The workdir is then on gs:// or on a disk that all see.
"""

from __future__ import annotations

import sys

from absl import flags

from elq_jax.cli.config import define_config
from elq_jax.cli.run import define_path, run, start_jax
from elq_jax.storage.files import user_address

_CONFIG = define_config()
_WORKDIR = define_path(
    "workdir", "Folder of this run; may be on gs://.", parse=user_address, required=True
)
_PROFILE = flags.DEFINE_integer(
    "profile",
    0,
    "Number of steps of each stage to trace into WORKDIR/STAGE/profile, for TensorBoard or XProf.",
    lower_bound=0,
)
flags.mark_flag_as_required("config")


def main(arguments: list[str]) -> None:
    """Trains a linker, then prints its folder."""
    del arguments
    start_jax(several_processes=True)
    from elq_jax.core import devices
    from elq_jax.core.machine import peak_memory
    from elq_jax.training.loop import train_and_evaluate

    linker = train_and_evaluate(_CONFIG.value, _WORKDIR.value, _PROFILE.value)
    if devices.is_main():
        print(linker)
    print(f"peak memory {peak_memory() / 2**30:.2f} GiB", file=sys.stderr)


if __name__ == "__main__":
    run(main, is_resumable=lambda: True)
