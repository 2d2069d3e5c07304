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

from elq_jax.cli.flags import LinkerFlags, SettingsFlags
from elq_jax.cli.run import define_path, define_paths, run, start_jax
from elq_jax.evaluation.options import Options
from elq_jax.storage.files import make_results_folder

_LINKER = LinkerFlags.define()
_QUESTIONS = define_paths("questions", "Labelled questions, .jsonl or .jsonl.gz", required=True)
_TUNE = define_paths(
    "tune", "Labelled questions to choose the threshold on; never the ones to report on"
)
_OUTPUT = define_path("output", "Folder for report.json, curve.png, errors.jsonl.")
_OPTIONS = SettingsFlags.define(
    Options, "evaluate", tune=_TUNE, threshold=_LINKER.threshold, batch_size=_LINKER.batch_size
)
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
    options = _OPTIONS.value()
    if _OUTPUT.value:  # before hours of work
        make_results_folder(_OUTPUT.value, ("report.json", "errors.jsonl", "curve.png"))
    start_jax(several_processes=True)
    from rich.console import Console

    from elq_jax.core import devices
    from elq_jax.evaluation.evaluate import EVALUATIONS

    name = f"elq_jax.original.evaluation:{_ORIGINAL.value}" if _ORIGINAL.value else "standard"
    evaluate = EVALUATIONS.get(name)
    outcome = evaluate(_LINKER.open(devices.all_devices()), _QUESTIONS.value, options)
    outcome.report = _LINKER.asked() | outcome.report
    try:
        if _OUTPUT.value and devices.is_main():
            outcome.write(_OUTPUT.value)
            print(f"written: {_OUTPUT.value}", file=sys.stderr)
    finally:  # Where the disk is full, the work is not lost.
        outcome.print(Console(quiet=not devices.is_main()))


if __name__ == "__main__":
    run(main)
