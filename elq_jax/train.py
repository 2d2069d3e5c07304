"""Trains a linker.

    python -m elq_jax.train --config configs/webqsp.py --workdir runs/webqsp

Settings are in the configuration file (configs/default.py lists them all); any of them can be
changed on the command line: --config.joint.batch_size=128. The result is `workdir`/linker, a
directory that the other programs take as --linker. Metrics go to metrics.jsonl and curves.png in
the folder of each stage.

Stopped by SIGTERM or Ctrl-C, it saves and exits with status 75; killed in any other way, it loses
what came after the last checkpoint. The same command goes on from there.
"""

from __future__ import annotations

import sys

from absl import flags
from ml_collections import config_flags

from elq_jax import cli

_CONFIG = config_flags.DEFINE_config_file("config", None, "Configuration file.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of this run.", required=True)
flags.mark_flag_as_required("config")


def main(arguments: list[str]) -> None:
    """Trains, then prints where the linker is."""
    del arguments
    cli.use_compilation_cache()
    from elq_jax.evaluation.speed import peak_memory
    from elq_jax.training.loop import train_and_evaluate

    print(train_and_evaluate(_CONFIG.value, _WORKDIR.value))
    print(f"peak memory {peak_memory() / 2**30:.2f} GiB", file=sys.stderr)


if __name__ == "__main__":
    cli.run(main)
