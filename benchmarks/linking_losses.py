"""Trains with each linking loss for the same number of steps and compares F1 on dev.

    python -m benchmarks.linking_losses --config configs/webqsp.py --workdir runs/losses --steps 100

prints F1 on dev, the threshold and the time of a step for every loss. The same command resumes
a stopped measurement.
"""

from __future__ import annotations

import copy
import pathlib
import statistics

from absl import flags
from rich.console import Console
from rich.table import Table

from elq_jax.cli import config as config_flag
from elq_jax.cli.run import run, start_jax

_CONFIG = config_flag.define_config("configs/webqsp.py")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the runs.", required=True)
_STEPS = flags.DEFINE_integer("steps", 100, "Number of steps of each run.", lower_bound=20)


def main(arguments: list[str]) -> None:
    """Trains the runs that are not finished, then prints the table."""
    del arguments
    start_jax()
    from elq_jax.core.machine import describe_machine
    from elq_jax.losses import LINKING_LOSSES
    from elq_jax.storage.lines import read_jsonl
    from elq_jax.training.loop import train_and_evaluate

    table = Table("linking loss", "weak F1", "strong F1", "threshold", "s/step", "examples/s")
    for name in (*LINKING_LOSSES.names, "elq_jax.original.loss:hard_negatives_bce"):
        config = copy.deepcopy(_CONFIG.value)
        config.joint.linking_loss = name
        config.joint.num_steps = config.joint.eval_every = config.joint.checkpoint_every = (
            _STEPS.value
        )
        config.joint.log_every = 10
        workdir = pathlib.Path(_WORKDIR.value) / name.rpartition(":")[2]
        train_and_evaluate(config, workdir)
        rows = [row for _, row in read_jsonl(workdir / "joint" / "metrics.jsonl")]
        score = next(row for row in reversed(rows) if "dev_weak_f1" in row)
        # The first intervals compile.
        timed = [row for row in rows if "seconds_per_step" in row][len(rows) // 3 :]
        values = (
            f"{score['dev_weak_f1']:.3f}",
            f"{score['dev_strong_f1']:.3f}",
            f"{score['dev_threshold']:.2f}",
            f"{statistics.median(row['seconds_per_step'] for row in timed):.2f}",
            f"{statistics.median(row['examples_per_second'] for row in timed):.0f}",
        )
        table.add_row(name, *values)
    console = Console()
    console.print(table)
    machine = describe_machine()
    console.print(
        f"{_STEPS.value} steps each, on {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['num_devices']} x {machine['device']}"
    )


if __name__ == "__main__":
    run(main, is_resumable=lambda: True)
