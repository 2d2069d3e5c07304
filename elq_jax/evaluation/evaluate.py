"""Measures a linker on labelled questions, for the program `evaluate` and for notebooks.

outcome = evaluate(linker, ["test.jsonl"], Options(tune=["dev.jsonl"]))
outcome.report["all"]["weak"]["f1"]
"""

from __future__ import annotations

import abc
import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from elq_jax.core.errors import ElqError
from elq_jax.core.machine import describe_machine, peak_memory
from elq_jax.core.registry import Registry
from elq_jax.evaluation import show
from elq_jax.evaluation.options import Options
from elq_jax.evaluation.predict import predict
from elq_jax.evaluation.scores import Evaluation
from elq_jax.evaluation.speed import measure_speed
from elq_jax.linking.linker import EntityLinker
from elq_jax.questions.examples import AlignmentReport
from elq_jax.questions.read import read_questions
from elq_jax.questions.records import Question
from elq_jax.storage.files import write_json
from elq_jax.storage.progress import progress

if TYPE_CHECKING:
    import rich.console

    from elq_jax.entities.catalogue import Catalogue


class Outcome(abc.ABC):
    """Holds the result of an evaluation.

    Attributes:
      report: all numbers, JSON-able.
    """

    def __init__(self, report: dict[str, Any]):
        self.report = report

    @abc.abstractmethod
    def print(self, console: rich.console.Console) -> None:
        """Prints the numbers for a person."""

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Writes report.json and other files to a folder."""
        write_json(pathlib.Path(folder) / "report.json", self.report)


Procedure = Callable[[EntityLinker, Sequence[str | os.PathLike[str]], Options], Outcome]
EVALUATIONS: Registry[Procedure] = Registry("evaluation", "elq_jax.evaluation.evaluate")


@EVALUATIONS.register("standard")
def evaluate(
    linker: EntityLinker,
    questions: Sequence[str | os.PathLike[str]],
    options: Options | None = None,
) -> Evaluated:
    """Measures a linker on labelled questions.

    With `options.tune`, the threshold is the one that is best on those other questions. Progress
    and problems of the files are printed on stderr.

    Args:
      linker: linker to measure.
      questions: paths of labelled questions, counted together.
      options: settings of the evaluation.

    Returns:
      an outcome whose report has the keys of `describe_linker` and `Evaluation.report`, and
      questions (counts of each file), floor, tune, machine, speed and peak_memory_bytes.

    Raises:
      ElqError: a file cannot be used, or the linker's scores are not log-probabilities.
    """
    options = options or Options()
    if not linker.settings.decoding.log_probabilities:
        raise ElqError(
            f"the linker's decoder {linker.settings.decoding} ranks links by something else than "
            'joint scores, whose thresholds evaluate needs; open the linker with decoder="joint"'
        )
    tune, tune_files = read_files(linker, options.tune, options.on_error)
    labelled, files = read_files(linker, questions, options.on_error)
    _warn_of_same(options.tune, questions)
    threshold = linker.settings.threshold if options.threshold is None else options.threshold
    floor = min(options.floor, threshold)
    report = describe_linker(linker) | {"questions": files, "floor": floor}
    if tune:
        sweep = _predict("tuning", linker, tune, floor, options.batch_size).sweep
        threshold, f1 = sweep.best_threshold(options.metric), float(sweep.f1(options.metric).max())
        report["threshold_from"] = "--tune"
        report["tune"] = {"questions": tune_files, "metric": options.metric, "f1": f1}
        _say(f"best {options.metric} F1 on --tune: {f1:.3f}, at threshold {threshold:.3f}")
        if not f1:
            _say(
                "warning: no link in the --tune questions is right, so the threshold chosen on "
                "them means nothing; does this linker fit these questions?"
            )
    evaluation = _predict(
        "linking", linker, labelled, floor, options.batch_size, at_gold_spans=True
    )
    report |= evaluation.report(threshold)
    report["machine"] = describe_machine()
    report["batch_size"] = options.batch_size
    if options.speed:
        texts = [question.text for question in labelled]
        report["speed"] = measure_speed(linker, texts, threshold, options.batch_size)
    report["peak_memory_bytes"] = peak_memory()
    return Evaluated(report, evaluation, linker.catalogue)


def describe_linker(linker: EntityLinker) -> dict[str, Any]:
    """Returns what a report says of the linker that was measured."""
    return {
        "index": linker.index.name,
        "entities": len(linker.catalogue),
        "max_mentions": linker.settings.max_mentions,
        "num_candidates": linker.settings.num_candidates,
        "dtype": linker.scorer.dtype,
    }


class Evaluated(Outcome):
    """Holds labelled questions that were linked and counted.

    Attributes:
      report: all numbers, JSON-able.
      evaluation: predictions and gold, which can be counted at other thresholds.
    """

    def __init__(self, report: dict[str, Any], evaluation: Evaluation, catalogue: Catalogue):
        super().__init__(report)
        self.evaluation, self._catalogue = evaluation, catalogue

    def print(self, console: rich.console.Console) -> None:
        """Prints tables of scores, and the speed."""
        show.print_report(console, self.report)

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Writes report.json, errors.jsonl and curve.png."""
        super().write(folder)
        folder, threshold = pathlib.Path(folder), self.report["threshold"]
        errors = self.evaluation.errors(threshold, self._catalogue)
        show.write_errors(folder / "errors.jsonl", errors)
        title, evaluation = "in catalogue", self.evaluation.in_catalogue()
        if not evaluation.results:
            title, evaluation = "all", self.evaluation
        show.plot_precision_recall(folder / "curve.png", evaluation.sweep, threshold, title)


def read_files(
    linker: EntityLinker,
    paths: Sequence[str | os.PathLike[str]],
    on_error: str = "stop",
    **options: Any,
) -> tuple[list[Question], list[dict[str, Any]]]:
    """Reads labelled questions for a linker; prints on stderr how their gold was found.

    Args:
      linker: linker whose catalogue the gold is looked up in.
      paths: paths of the files.
      on_error: action at a line that cannot be used, see `read_questions`.
      **options: further arguments of `read_questions`.

    Returns:
      the questions of all files together, and the counts of each file.
    """
    questions, files = [], []
    for path in paths:
        questions_of_file, resolution = read_questions(path, linker.catalogue, on_error, **options)
        _say(resolution.summary())
        questions += questions_of_file
        files.append(
            {
                "path": os.fspath(path),
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
    questions: Sequence[Question],
    floor: float,
    batch_size: int,
    at_gold_spans: bool = False,
) -> Evaluation:
    with progress(description, len(questions), "questions") as advance:
        evaluation = predict(
            linker,
            questions,
            floor,
            batch_size=batch_size,
            at_gold_spans=at_gold_spans,
            progress=advance,
        )
    if evaluation.problems:
        mentions = sum(len(question.mentions) for question in questions)
        _say(AlignmentReport(len(questions), mentions, list(evaluation.problems)).summary())
    return evaluation


def _warn_of_same(
    tune: Sequence[str | os.PathLike[str]], questions: Sequence[str | os.PathLike[str]]
) -> None:
    for path in tune:
        if any(os.path.samefile(path, other) for other in questions):
            _say(
                f"warning: {os.fspath(path)} is in --tune and in --questions; its scores are too "
                "good, since the threshold was chosen on the same questions"
            )


def _say(message: str) -> None:
    print(message, file=sys.stderr)
