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
    errors.jsonl   what is wrong, one line per error

Give --questions (and --tune) once for each file. Several hosts started together (see
elq_jax/train.py) share the work, and the first show.
"""

from __future__ import annotations

import os
import pathlib
import sys
from typing import TYPE_CHECKING, Any

from absl import flags

from elq_jax import cli
from elq_jax.cli.flags import LinkerFlags
from elq_jax.core.errors import ElqError
from elq_jax.storage.files import write_json
from elq_jax.storage.progress import progress

if TYPE_CHECKING:
    from rich.console import Console

    from elq_jax.evaluation.sweep import Evaluation
    from elq_jax.linking.linker import EntityLinker
    from elq_jax.questions.records import Question

_FLAGS = LinkerFlags.define()
_QUESTIONS = flags.DEFINE_multi_string(
    "questions", None, "Labelled questions, .jsonl or .jsonl.gz", required=True
)
_TUNE = flags.DEFINE_multi_string(
    "tune", [], "Labelled questions to choose the threshold on; never the ones to report on"
)
_METRIC = flags.DEFINE_enum("metric", "weak", ("weak", "strong"), "The F1 that --tune maximises.")
_FLOOR = flags.DEFINE_float(
    "floor", -8.0, "Link at this score; thresholds can be tried from here up."
)
_OUTPUT = flags.DEFINE_string("output", None, "Folder for report.json, curve.png, errors.jsonl.")
_ON_ERROR = flags.DEFINE_enum(
    "on_error", "stop", ("stop", "skip"), "What to do with a line that cannot be used."
)
_SPEED = flags.DEFINE_bool("speed", True, "Link twice more, to measure questions per second.")
_ORIGINAL = flags.DEFINE_enum(
    "original",
    None,
    ("labelled", "training"),
    "Instead of all this, count the way the original does, for files of the EL4QA form: their "
    "token ids, cut to windows around the gold mentions, label_id as it is, mentions with [CLS] "
    "and [SEP] allowed, positions in tokens. labelled: as its evaluation of labelled questions; "
    "training: as its evaluation while it trains with a frozen entity encoder (thresholds and "
    "numbers of candidates of its own, overlapping links, mentions of one token never found).",
)


def main(arguments: list[str]) -> None:
    """Links, counts, prints and writes."""
    del arguments
    if _TUNE.value and _FLAGS.threshold.value is not None:
        raise ElqError("--tune, --threshold: either of them decides the threshold; give one")
    if _OUTPUT.value and pathlib.Path(_OUTPUT.value).is_file():
        raise ElqError(f"--output {_OUTPUT.value}: is a file; give a folder")
    cli.start_jax(several_processes=True)
    from rich.console import Console

    from elq_jax.core import devices

    linker = _FLAGS.open(devices.all_devices())
    console = Console(quiet=not devices.is_main())
    output = pathlib.Path(_OUTPUT.value) if _OUTPUT.value and devices.is_main() else None
    report = {
        "linker": _FLAGS.linker.value,
        "index": linker.index.name,
        "entities": len(linker.catalogue),
        "max_mentions": linker.settings.max_mentions,
        "num_candidates": linker.settings.num_candidates,
        "dtype": _FLAGS.dtype.value,
    }
    if _ORIGINAL.value:
        report |= _evaluate_as_original(linker, console)
    else:
        report |= _evaluate(linker, console, output)
    if output:
        write_json(output / "report.json", report)
        print(f"written: {output}", file=sys.stderr)


def _evaluate(
    linker: EntityLinker, console: Console, output: pathlib.Path | None
) -> dict[str, Any]:
    from elq_jax.core.machine import describe_machine, peak_memory
    from elq_jax.evaluation import show
    from elq_jax.evaluation.speed import measure_speed

    if not linker.settings.decoding.log_probabilities:
        raise ElqError(
            f"{_FLAGS.linker.value}: its decoder {linker.settings.decoding} ranks mentions by "
            'something else than joint scores, at whose thresholds evaluate counts; use "joint"'
        )
    tune, tune_files = _read(linker, _TUNE.value)
    questions, files = _read(linker, _QUESTIONS.value)
    for path in _TUNE.value:
        if any(os.path.samefile(path, other) for other in _QUESTIONS.value):
            print(
                f"warning: --tune {path} is one of --questions: their score is at a threshold that "
                "was chosen on them",
                file=sys.stderr,
            )
    threshold = linker.settings.threshold
    floor = min(_FLOOR.value, threshold)
    given = [flag for flag in (_FLAGS.threshold, _FLAGS.preset) if flag.value is not None]
    report: dict[str, Any] = {
        "questions": files,
        "floor": floor,
        "threshold_from": next((f"--{flag.name}" for flag in given), "linker"),
    }
    if tune:
        sweep = _predict("tuning", linker, tune, floor).sweep
        threshold, f1 = sweep.best_threshold(_METRIC.value), float(sweep.f1(_METRIC.value).max())
        report["threshold_from"] = "--tune"
        report["tune"] = {"questions": tune_files, "metric": _METRIC.value, "f1": f1}
        print(f"best {_METRIC.value} F1 {f1:.3f}, at {threshold:.3f}", file=sys.stderr)
        if not f1:
            print("warning: nothing that was linked in --tune is right", file=sys.stderr)

    evaluation = _predict("linking", linker, questions, floor, at_gold_spans=True)
    scores = evaluation.report(threshold)
    report |= scores
    show.print_report(console, scores)
    report["machine"] = machine = describe_machine()
    if _SPEED.value:
        texts = [question.text for question in questions]
        report["speed"] = speed = measure_speed(linker, texts, threshold, _FLAGS.batch_size.value)
        console.print(
            f"{speed['questions_per_second']:,.1f} questions/s from text to links (second of two "
            f"passes, {len(texts):,} questions)",
            highlight=False,
        )
    report["peak_memory_bytes"] = peak = peak_memory()
    on = f"{machine['cpu']}, {machine['cores']} cores"
    if machine["device"] != "cpu":
        on += f", {machine['num_devices']} x {machine['device']}"
    console.print(
        f"{on}; {linker.index.name} index of {len(linker.catalogue):,} entities, batch "
        f"{_FLAGS.batch_size.value}; peak memory {peak / 2**30:.2f} GiB",
        highlight=False,
    )
    if output:
        errors = evaluation.errors(threshold, linker.catalogue.titles)
        show.write_errors(output / "errors.jsonl", errors)
        known = evaluation.in_catalogue()
        title, shown = ("in catalogue", known) if known.results else ("all", evaluation)
        show.plot_precision_recall(output / "curve.png", shown.sweep, threshold, title)
    return report


def _evaluate_as_original(linker: EntityLinker, console: Console) -> dict[str, Any]:
    from rich.table import Table

    from elq_jax.original import evaluation as original

    if _TUNE.value:
        raise ElqError("--tune, --original: cannot be combined; give --threshold")
    if _ORIGINAL.value == "training" and _FLAGS.threshold.value is not None:
        raise ElqError("--threshold, --original=training: it has a threshold of its own, -2.5")
    questions, files = _read(linker, _QUESTIONS.value, trust_label_ids=True, allow_overlaps=True)
    report: dict[str, Any] = {"questions": files}
    size = _FLAGS.batch_size.value
    with progress("linking", len(questions), "questions") as advance:
        if _ORIGINAL.value == "training":
            counts = original.count_as_in_training(linker, questions, size, progress=advance)
            parts = {"training": counts}
            report |= original.IN_TRAINING | {"threshold": original.THRESHOLD_IN_TRAINING}
        else:
            linked = original.link_windows(linker, questions, batch_size=size, progress=advance)
            counts = original.count_windows(linked)
            parts = {"window": counts.window, "text": counts.text}
            report["threshold"] = linker.settings.threshold
    table = Table("", "match", "correct", "predicted", "gold", "P", "R", "F1")
    for name, part in parts.items():
        report[name] = {"predicted": part.predicted, "gold": part.gold}
        for metric in ("weak", "strong"):
            report[name][metric] = scores = part.scores(metric)
            correct, *rest = scores.values()
            shown = (f"{value:.4f}" for value in rest)
            table.add_row(name, metric, *map(str, (correct, part.predicted, part.gold)), *shown)
    console.print(table)
    return report


def _read(
    linker: EntityLinker, paths: list[str], **options: Any
) -> tuple[list[Question], list[dict[str, Any]]]:
    """The questions of all files together, and what is to be said of each file."""
    from elq_jax.questions.read import read_questions

    questions, files = [], []
    for path in paths:
        found, resolution = read_questions(path, linker.catalogue, _ON_ERROR.value, **options)
        print(resolution.summary(), file=sys.stderr)
        questions += found
        files.append(
            {
                "path": path,
                "questions": resolution.questions,
                "mentions": resolution.mentions,
                "gold": dict(resolution.counts),
                "skipped": len(resolution.skipped),
            }
        )
    return questions, files


def _predict(
    description: str,
    linker: EntityLinker,
    questions: list[Question],
    floor: float,
    at_gold_spans: bool = False,
) -> Evaluation:
    from elq_jax.evaluation.predictions import align_gold, predict
    from elq_jax.questions.examples import AlignmentReport

    aligned = align_gold(linker, questions)
    problems = [problem for one in aligned for problem in one.problems]
    if problems:
        mentions = sum(len(question.mentions) for question in questions)
        print(AlignmentReport(len(questions), mentions, problems).summary(), file=sys.stderr)
    with progress(description, len(questions), "questions") as advance:
        return predict(
            linker,
            questions,
            floor,
            batch_size=_FLAGS.batch_size.value,
            at_gold_spans=at_gold_spans,
            progress=advance,
        )


if __name__ == "__main__":
    cli.run(main)
