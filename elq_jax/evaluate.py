"""Measures a linker on labelled questions.

    python -m elq_jax.evaluate --linker my_linker --tune dev.jsonl --questions test.jsonl \\
        --output results/

chooses the threshold with the best F1 on the --tune questions, and prints how good the links of the
--questions are at this threshold. Without --tune the threshold is --threshold, or the linker's own.
Printed are

  - precision, recall and F1 of the links: for the questions whose gold entities are all in the
    catalogue, and for all questions, where an entity outside the catalogue counts as missed. A weak
    match is the right entity at a span that overlaps the gold mention, a strong match is the right
    entity at exactly that span;
  - the same for mentions alone, whatever their entity;
  - how often the right entity comes first, and among the first ones, for the gold mentions;
  - how well the probabilities of links agree with the share of right links;
  - questions per second.

    python -m elq_jax.evaluate --linker my_linker --questions a/dev.jsonl,b/dev.jsonl \\
        --against other_results/ --perturb

prints one table with a row for each file and their mean, in which each file counts as much. With
--tune a/dev.jsonl,b/dev.jsonl the threshold with the best mean is chosen. Files joined by a plus
sign are counted together, in one row: --questions test.jsonl+test_oov.jsonl. --against compares
with an earlier run on the same questions: differences of F1, their 95% intervals and p-values.
--perturb links the questions again with emoji, capitals, typos and the like, and prints what each
costs.

--output names a folder for

    report.json        all numbers
    predictions.jsonl  links of each question, in the form that link writes; for --against
    errors.jsonl       wrong and missing links, one line per error
    curve.png          precision and recall at all thresholds
    calibration.png    share of right links by probability, and among the most probable links

Several hosts that are started together (see elq_jax/train.py) share the work; the first one prints.
"""

from __future__ import annotations

import sys

from absl import flags

from elq_jax.cli.flags import LinkerFlags, SettingsFlags
from elq_jax.cli.run import define_path, define_path_sets, run, start_jax
from elq_jax.core.errors import ElqError
from elq_jax.evaluation.options import FILES, Options
from elq_jax.storage.files import make_results_folder

_LINKER = LinkerFlags.define()
_QUESTIONS = define_path_sets(
    "questions", "Labelled questions to measure on, .jsonl or .jsonl.gz", required=True
)
_TUNE = define_path_sets(
    "tune", "Labelled questions to choose the threshold on, others than --questions"
)
_OUTPUT = define_path("output", f"Folder for {', '.join(FILES[:-1])} and {FILES[-1]}.")
_AGAINST = define_path(
    "against",
    "Earlier run on the same questions to compare with: the folder that it wrote as --output, its "
    "predictions.jsonl, or what link wrote.",
)
_OPTIONS = SettingsFlags.define(
    Options,
    "evaluate",
    tune=_TUNE,
    against=_AGAINST,
    threshold=_LINKER.threshold,
    batch_size=_LINKER.batch_size,
)
_ORIGINAL = flags.DEFINE_enum(
    "original",
    None,
    ("labelled", "training"),
    "Way to count that gives the numbers of the original ELQ, for files in its form, EL4QA. "
    "It uses their token ids, cuts questions to windows around the gold mentions, does not check "
    "label_id, allows mentions with [CLS] and [SEP], and compares positions of tokens. labelled: "
    "as in its evaluation of labelled questions. training: as in its evaluation during training, "
    "with thresholds and numbers of candidates of its own, overlapping links, and no mentions of "
    "one token.",
)


def main(arguments: list[str]) -> None:
    """Links the questions, counts right and wrong links, writes and prints the results."""
    del arguments
    options = _OPTIONS.value()
    if options.tune and _LINKER.min_probability.value is not None:
        raise ElqError("--tune, --min_probability: both decide the threshold; give one of them")
    if _OUTPUT.value:  # before hours of work
        make_results_folder(_OUTPUT.value, FILES)
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
