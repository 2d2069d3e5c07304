"""Measures a linker on labelled questions.

    python -m elq_jax.evaluate --linker my_linker --tune dev.jsonl --questions test.jsonl \\
        --output results/

chooses the threshold with the best F1 on the --tune questions, and prints at this threshold, for
the --questions, precision, recall and F1 of links and of mentions alone, the ranking of entities at
the gold mentions, how well the probabilities of links agree with the share of right ones, and
questions per second. A weak match is the right entity at a span that overlaps the gold mention, a
strong match is the right entity at exactly that span. Without --tune the threshold is --threshold,
or the linker's own.

    python -m elq_jax.evaluate --linker my_linker --questions a/dev.jsonl,b/dev.jsonl

prints one table with a row for each file and their mean; --tune then chooses by the mean. Files
joined by a plus sign are counted together: --questions test.jsonl+test_oov.jsonl.

Links at the "neutral" spans of a line, or outside of its "evaluation_span", are neither right nor
wrong. Benchmark files of ELEVANT are read as they are (docs/evaluation.md).

--output names a folder for report.json (all numbers), predictions.jsonl (links as link writes
them, for --against), errors.jsonl (wrong and missing links), curve.png (precision and recall by
threshold) and calibration.png. Several hosts started together (see train.py) share the work.
"""

from __future__ import annotations

from absl import flags

from elq_jax.cli.flags import LinkerFlags, SettingsFlags
from elq_jax.cli.run import define_path, define_path_sets, run, start_jax
from elq_jax.core.errors import ElqError
from elq_jax.evaluation.options import FILES, Options
from elq_jax.storage.files import make_results_folder

_LINKER = LinkerFlags.define()
_QUESTIONS = define_path_sets("questions", "Labelled questions, .jsonl or .jsonl.gz", required=True)
_TUNE = define_path_sets("tune", "Other labelled questions, to choose the threshold on")
_OUTPUT = define_path("output", f"Folder for {', '.join(FILES[:-1])} and {FILES[-1]}.")
_AGAINST = define_path(
    "against",
    "Earlier run on the same questions to compare with: its --output folder, or what link wrote.",
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
    "Way to count that gives the numbers of the original ELQ on its files, EL4QA: labelled, "
    "as its evaluation of labelled questions; training, as its evaluation during training.",
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
    from elq_jax.core import devices
    from elq_jax.evaluation.evaluate import EVALUATIONS

    name = f"elq_jax.original.evaluation:{_ORIGINAL.value}" if _ORIGINAL.value else "standard"
    evaluate = EVALUATIONS.get(name)
    outcome = evaluate(_LINKER.open(devices.all_devices()), _QUESTIONS.value, options)
    outcome.report = _LINKER.asked() | outcome.report
    if devices.is_main():
        outcome.finish(_OUTPUT.value)


if __name__ == "__main__":
    run(main)
