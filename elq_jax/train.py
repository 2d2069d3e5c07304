"""Trains a linker on labelled questions and a catalogue of entities.

    python -m elq_jax.train --config configs/webqsp.py --workdir runs/webqsp

The configuration file names the questions, the catalogue and all settings; configs/default.py
explains each of them. Any setting can be changed on the command line, for instance
--config.joint.batch_size=128. The result is WORKDIR/linker, a folder that the other programs take
as --linker. Losses and scores are written to metrics.jsonl and curves.png in the folder of each
stage.

The same command resumes a run that was stopped. After SIGTERM or Ctrl-C the run saves a checkpoint
and exits with status 75. If it is killed in another way, the steps after its last checkpoint are
taken again.

On several hosts, start the same command on each of them, with JAX_COORDINATOR_ADDRESS (host:port of
the first), JAX_NUM_PROCESSES and JAX_PROCESS_ID set, or with ELQ_JAX_DISTRIBUTED=1 where JAX finds
the other hosts by itself (TPU slices, Slurm). The workdir is then on gs:// or on a disk that all of
them see.
"""

from __future__ import annotations

import sys

from absl import flags

from elq_jax.cli.config import define_config
from elq_jax.cli.run import define_path, run, start_jax
from elq_jax.storage.files import user_address

_CONFIG = define_config()
_WORKDIR = define_path(
    "workdir",
    "Folder for everything that this run writes; may be on gs://.",
    parse=user_address,
    required=True,
)
_PROFILE = flags.DEFINE_integer(
    "profile",
    0,
    "Number of steps of each stage whose times are recorded in WORKDIR/STAGE/profile, for "
    "TensorBoard or XProf.",
    lower_bound=0,
)
flags.mark_flag_as_required("config")


def main(arguments: list[str]) -> None:
    """Trains a linker, then prints its folder."""
    del arguments
    start_jax(several_processes=True, keep_memory=True)
    from elq_jax.core import devices
    from elq_jax.core.machine import peak_memory
    from elq_jax.training.loop import train_and_evaluate

    linker = train_and_evaluate(_CONFIG.value, _WORKDIR.value, _PROFILE.value)
    if devices.is_main():
        print(linker)
    print(f"peak memory {peak_memory() / 2**30:.2f} GiB", file=sys.stderr)


if __name__ == "__main__":
    run(main, is_resumable=lambda: True)
