"""Measures a linker on labelled questions.

    python -m elq_jax.evaluate --linker my_linker --tune dev.jsonl --questions test.jsonl \\
        --output results/

links every question once, at the low score of --floor, and counts at the threshold that is best on
the --tune questions (or --threshold, or the linker's own). Several --questions are pooled. Shown
are precision, recall and F1 with weak and strong matching: for the questions whose gold entities
are all in the catalogue, and for all of them (gold outside the catalogue is then a miss); for
mentions without their entities; the ranking of entities at the gold mentions; and questions per
second. --output also receives

    report.json    all numbers
    curve.png      precision and recall at all thresholds
    errors.jsonl   wrong and missing links, one line per error

--questions (and --tune) take several files as a,b. Several hosts started together (see
elq_jax/train.py) share the work, and the first of them prints.
"""

from __future__ import annotations

import sys

from absl import flags

from elq_jax.cli.flags import LinkerFlags
from elq_jax.cli.run import define_path, define_paths, run, start_jax
from elq_jax.core.errors import ElqError
from elq_jax.storage.files import make_folder

_FLAGS = LinkerFlags.define()
_QUESTIONS = define_paths("questions", "Labelled questions, .jsonl or .jsonl.gz", required=True)
_TUNE = define_paths(
    "tune", "Labelled questions to choose the threshold on; never the ones to report on"
)
_METRIC = flags.DEFINE_enum("metric", "weak", ("weak", "strong"), "The F1 that --tune maximises.")
_FLOOR = flags.DEFINE_float(
    "floor", -8.0, "Score at which everything is linked; thresholds can be tried from there up."
)
_OUTPUT = define_path("output", "Folder for report.json, curve.png, errors.jsonl.")
_ON_ERROR = flags.DEFINE_enum(
    "on_error", "stop", ("stop", "skip"), "What to do with a line that cannot be used."
)
_SPEED = flags.DEFINE_bool("speed", True, "Link twice more, to measure questions per second.")
_ORIGINAL = flags.DEFINE_enum(
    "original",
    None,
    ("labelled", "training"),
    "Count the way the original does instead, for files of the EL4QA form: with their token ids, "
    "cut to windows around the gold mentions, label_id not checked, mentions with [CLS] and "
    "[SEP] allowed, positions in tokens. labelled: as its evaluation of labelled questions; "
    "training: as its evaluation while it trains with a frozen entity encoder (thresholds and "
    "numbers of candidates of its own, overlapping links, mentions of one token never found).",
)


def main(arguments: list[str]) -> None:
    """Links the questions, counts right and wrong links, writes and prints the results."""
    del arguments
    if _TUNE.value and _FLAGS.threshold.value is not None:
        raise ElqError("--tune, --threshold: either of them decides the threshold; give one")
    if _OUTPUT.value:  # before hours of work
        make_folder(_OUTPUT.value)
    start_jax(several_processes=True)
    from rich.console import Console

    from elq_jax.core import devices
    from elq_jax.evaluation.evaluate import EVALUATIONS, Options

    name = f"elq_jax.original.evaluation:{_ORIGINAL.value}" if _ORIGINAL.value else "standard"
    evaluate = EVALUATIONS.get(name)
    linker = _FLAGS.open(devices.all_devices())
    options = Options(
        tune=_TUNE.value,
        threshold=_FLAGS.threshold.value,
        metric=_METRIC.value,
        floor=_FLOOR.value,
        batch_size=_FLAGS.batch_size.value,
        on_error=_ON_ERROR.value,
        speed=_SPEED.value,
    )
    outcome = evaluate(linker, _QUESTIONS.value, options)
    given = [flag.name for flag in (_FLAGS.threshold, _FLAGS.preset) if flag.value is not None]
    about = {
        "linker": str(_FLAGS.linker.value),
        "index": linker.index.name,
        "entities": len(linker.catalogue),
        "max_mentions": linker.settings.max_mentions,
        "num_candidates": linker.settings.num_candidates,
        "dtype": _FLAGS.dtype.value,
        "threshold_from": f"--{given[0]}" if given else "linker",
    }
    outcome.report = about | outcome.report
    if _OUTPUT.value and devices.is_main():
        outcome.write(_OUTPUT.value)
        print(f"written: {_OUTPUT.value}", file=sys.stderr)
    outcome.print(Console(quiet=not devices.is_main()))


if __name__ == "__main__":
    run(main)
