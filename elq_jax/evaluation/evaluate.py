"""Measures a linker on labelled questions, for the program `evaluate` and for notebooks.

outcome = evaluate(linker, ["a/test.jsonl", "b/test.jsonl"], Options(tune=["a/dev.jsonl"]))
outcome.report["mean"]["all"]["weak"]["f1"]
"""

from __future__ import annotations

import abc
import collections
import os
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from elq_jax.core.errors import ElqError
from elq_jax.core.machine import describe_machine, peak_memory
from elq_jax.core.registry import Registry
from elq_jax.evaluation import show
from elq_jax.evaluation.comparison import compare_runs, pool, report_of_sets
from elq_jax.evaluation.matching import QuestionResult, links_for_calibration
from elq_jax.evaluation.options import Options, PathSet
from elq_jax.evaluation.perturb import PERTURBATIONS, changed_questions, perturbation_report
from elq_jax.evaluation.predict import predict
from elq_jax.evaluation.predictions import PREDICTIONS, read_predictions, write_predictions
from elq_jax.evaluation.scores import Evaluation
from elq_jax.evaluation.sets import QuestionSet, paths_of, read_sets
from elq_jax.evaluation.speed import measure_speed
from elq_jax.evaluation.sweep import best_common_threshold
from elq_jax.linking.linker import EntityLinker
from elq_jax.questions.examples import AlignmentReport
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

    def finish(self, folder: str | os.PathLike[str] | None) -> None:
        """Writes the files, if a folder is given, and prints the numbers on stdout in any case."""
        import rich.console

        try:
            if folder is not None:
                self.write(folder)
                _say(f"written: {os.fspath(folder)}")
        finally:  # Where the disk is full, the work is not lost.
            self.print(rich.console.Console())


Procedure = Callable[[EntityLinker, Sequence[PathSet], Options], Outcome]
EVALUATIONS: Registry[Procedure] = Registry("evaluation", "elq_jax.evaluation.evaluate")


@EVALUATIONS.register("standard")
def evaluate(
    linker: EntityLinker, questions: Sequence[PathSet], options: Options | None = None
) -> Evaluated:
    """Measures a linker on sets of labelled questions.

    With `options.tune`, the threshold is the one that is best on those other questions. Progress
    and problems of the files are printed on stderr.

    Args:
      linker: linker to measure.
      questions: path of a file, or paths of several that are pooled, for each set.
      options: settings of the evaluation.

    Returns:
      an outcome whose report has the keys of `describe_linker` and `report_of_sets`, and questions
      (counts of each file), problems (number of gold mentions that no link can be equal to, by the
      kind of `MentionProblem`), floor, tune, against, perturb, machine, speed and
      peak_memory_bytes.

    Raises:
      ElqError: a file cannot be used, or the linker's scores are not log-probabilities.
    """
    options = options or Options()
    if not linker.settings.decoding.log_probabilities:
        raise ElqError(
            f"the linker's decoder {linker.settings.decoding} ranks links by something else than "
            'joint scores, whose thresholds evaluate needs; open the linker with decoder="joint"'
        )
    tune = read_sets(linker.catalogue, options.tune, options.on_error)
    sets = read_sets(linker.catalogue, questions, options.on_error)
    labelled = [question for part in sets for question in part.questions]
    _warn_of_same(options.tune, questions)
    others = None
    if options.against is not None:
        others = read_predictions(options.against, linker.catalogue, labelled)
    threshold = linker.settings.threshold if options.threshold is None else options.threshold
    floor = min(options.floor, threshold)
    files = [file for part in sets for file in part.files]
    report = describe_linker(linker) | {"questions": files, "floor": floor}
    if tune:
        threshold, report["tune"] = _choose_threshold(linker, tune, floor, options)
        report["threshold_from"] = "--tune"
    evaluations = _predict("linking", linker, sets, floor, options.batch_size, at_gold_spans=True)
    problems = [problem for part in evaluations.values() for problem in part.problems]
    report["problems"] = dict(collections.Counter(problem.kind for problem in problems))
    report |= report_of_sets(evaluations, threshold, seed=options.seed)
    if others is not None:
        compared = compare_runs(evaluations, threshold, others, seed=options.seed)
        report["against"] = {"path": os.fspath(options.against)} | compared
    if options.perturb:
        report["perturb"] = _perturb(linker, sets, evaluations, threshold, options)
    report["machine"] = describe_machine()
    report["batch_size"] = options.batch_size
    if options.speed:
        texts = [question.text for question in labelled]
        report["speed"] = measure_speed(linker, texts, threshold, options.batch_size)
    report["peak_memory_bytes"] = peak_memory()
    return Evaluated(report, pool([*evaluations.values()]), linker.catalogue)


def _choose_threshold(
    linker: EntityLinker, tune: Sequence[QuestionSet], floor: float, options: Options
) -> tuple[float, dict[str, Any]]:
    """Returns the threshold with the best F1, in the mean over sets, and a report of it."""
    evaluations = _predict("tuning", linker, tune, floor, options.batch_size)
    sweeps = [evaluation.sweep for evaluation in evaluations.values()]
    threshold, f1 = best_common_threshold(sweeps, options.metric)
    mean = float(f1.mean())
    report = {
        "questions": [file for part in tune for file in part.files],
        "metric": options.metric,
        "f1": mean,
        "sets": dict(zip(evaluations, f1.tolist(), strict=True)),
    }
    shown = "".join(f", {name} {value:.3f}" for name, value in report["sets"].items())
    shown = f" (mean{shown})" if len(tune) > 1 else ""
    _say(f"best {options.metric} F1 on --tune: {mean:.3f}{shown}, at threshold {threshold:.3f}")
    if not mean:
        _say(
            "warning: no link in the --tune questions is right, so the threshold chosen on "
            "them means nothing; does this linker fit these questions?"
        )
    return threshold, report


def _perturb(
    linker: EntityLinker,
    sets: Sequence[QuestionSet],
    evaluations: Mapping[str, Evaluation],
    threshold: float,
    options: Options,
) -> dict[str, Any]:
    """Links the questions that each perturbation changes, and reports what it costs."""
    if fixed := sum(bool(question.neutral) for part in sets for question in part.questions):
        _say(f"--perturb: {fixed:,} questions have neutral spans, and stay as they are")
    changed = {
        name: {part.name: changed_questions(part.questions, name, options.seed) for part in sets}
        for name in PERTURBATIONS
    }
    clean = {name: evaluation.results for name, evaluation in evaluations.items()}
    total = sum(len(part) for of_sets in changed.values() for part in of_sets.values())
    with progress("linking perturbed questions", total, "questions") as advance:

        def link(questions: Sequence[Question]) -> Sequence[QuestionResult]:
            settings = {"batch_size": options.batch_size, "progress": advance}
            return predict(linker, questions, threshold, **settings).results

        costs = perturbation_report(clean, changed, link, threshold)
    return {"seed": options.seed, "perturbations": costs}


def describe_linker(linker: EntityLinker) -> dict[str, Any]:
    """Returns what a report says of the linker that was measured."""
    return {
        "index": linker.index.name,
        "entities": linker.catalogue.num_entities,
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
        """Writes report.json, predictions.jsonl, errors.jsonl, curve.png and calibration.png."""
        super().write(folder)
        folder, threshold = pathlib.Path(folder), self.report["threshold"]
        results = self.evaluation.results
        write_predictions(folder / PREDICTIONS, results, threshold, self._catalogue)
        errors = self.evaluation.errors(threshold, self._catalogue)
        show.write_errors(folder / "errors.jsonl", errors)
        title, evaluation = "in catalogue", self.evaluation.in_catalogue()
        if not evaluation.results:
            title, evaluation = "all", self.evaluation
        show.plot_precision_recall(folder / "curve.png", evaluation.sweep, threshold, title)
        show.plot_calibration(
            folder / "calibration.png",
            *links_for_calibration(results, threshold),
            sum(len(result.gold) for result in results),
        )


def _predict(
    description: str,
    linker: EntityLinker,
    sets: Sequence[QuestionSet],
    floor: float,
    batch_size: int,
    at_gold_spans: bool = False,
) -> dict[str, Evaluation]:
    """Links the questions of each set; says which gold mentions no link can be equal to."""
    evaluations = {}
    total = sum(len(part.questions) for part in sets)
    with progress(description, total, "questions") as advance:
        for part in sets:
            evaluations[part.name] = predict(
                linker,
                part.questions,
                floor,
                batch_size=batch_size,
                at_gold_spans=at_gold_spans,
                progress=advance,
            )
    for part in sets:
        if problems := evaluations[part.name].problems:
            mentions = sum(len(question.mentions) for question in part.questions)
            _say(AlignmentReport(len(part.questions), mentions, list(problems)).summary())
    return evaluations


def _warn_of_same(tune: Sequence[PathSet], questions: Sequence[PathSet]) -> None:
    others = [path for path_set in questions for path in paths_of(path_set)]
    for path in (path for path_set in tune for path in paths_of(path_set)):
        if any(os.path.samefile(path, other) for other in others):
            _say(
                f"warning: {os.fspath(path)} is in --tune and in --questions; its scores are too "
                "good, since the threshold was chosen on the same questions"
            )


def _say(message: str) -> None:
    print(message, file=sys.stderr)
