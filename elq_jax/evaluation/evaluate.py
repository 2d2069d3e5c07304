"""Measures a linker on labelled questions, for the program `evaluate` and for notebooks.

outcome = evaluate(linker, ["test.jsonl"], Options(tune=["dev.jsonl"]))
outcome.report["all"]["weak"]["f1"]
"""

from __future__ import annotations

import abc
import collections
import dataclasses
import functools
import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from elq_jax.core.errors import ElqError
from elq_jax.core.machine import describe_machine, peak_memory
from elq_jax.core.registry import Registry
from elq_jax.evaluation import show
from elq_jax.evaluation.errors import ERRORS, list_errors
from elq_jax.evaluation.matching import (
    Counts,
    Gold,
    Metric,
    Predicted,
    QuestionResult,
    count_by_question,
)
from elq_jax.evaluation.options import Options
from elq_jax.evaluation.speed import measure_speed
from elq_jax.evaluation.sweep import RESAMPLES, Sweep, f1_intervals, sweep_thresholds
from elq_jax.linking.linker import EntityLinker
from elq_jax.linking.scoring import BATCHES_IN_FLIGHT
from elq_jax.questions.align import AlignedMentions, MentionProblem, align_mentions
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


def predict(
    linker: EntityLinker,
    questions: Sequence[Question],
    threshold: float,
    *,
    batch_size: int = 64,
    at_gold_spans: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Links labelled questions at a low threshold; each is tokenised and encoded once.

    Args:
      linker: linker to measure.
      questions: labelled questions, with character offsets of their gold mentions.
      threshold: score that predictions must exceed; the lowest threshold to count at later.
      batch_size: number of questions encoded at a time.
      at_gold_spans: whether candidates are also retrieved for the gold spans (disambiguation).
      progress: function called with the number of questions just done.

    Returns:
      the predictions and the gold, ready to be counted.
    """
    results: list[QuestionResult] = []
    problems: list[MentionProblem] = []
    step = BATCHES_IN_FLIGHT * batch_size
    for start in range(0, len(questions), step):
        part = questions[start : start + step]
        texts = [question.text for question in part]
        encoded = linker.encode(texts)
        aligned = [_align(linker, *pair) for pair in zip(part, encoded, strict=True)]
        bounds = [mentions.bounds for mentions in aligned] if at_gold_spans else None
        scored, scored_gold = linker.score_encoded(texts, encoded, threshold, batch_size, bounds)
        candidates = (
            _of_mentions(part, aligned, scored_gold.rows) if at_gold_spans else [None] * len(part)
        )
        for question, links, rows in zip(
            part, linker.decode(scored, threshold), candidates, strict=True
        ):
            gold = tuple(Gold(m.start, m.end, m.row, m.title) for m in question.mentions)
            predicted = tuple(
                Predicted(
                    link.start,
                    link.end,
                    link.row,
                    link.score,
                    tuple(candidate.row for candidate in link.candidates),
                )
                for link in links
            )
            results.append(QuestionResult(question.id, question.text, gold, predicted, rows))
        problems += [problem for mentions in aligned for problem in mentions.problems]
        if progress:
            progress(len(part))
    return Evaluation(results, threshold, problems)


def _align(linker: EntityLinker, question: Question, encoded: Any) -> AlignedMentions:
    return align_mentions(question, encoded, linker.config.max_mention_width)


def _of_mentions(
    questions: Sequence[Question], aligned: Sequence[AlignedMentions], rows: np.ndarray
) -> list[tuple[np.ndarray, ...]]:
    """Returns the candidates of each question's gold mentions; none if no tokens express it.

    Args:
      questions: Q questions.
      aligned: their mentions as tokens.
      rows: [n, C] int32, candidates of all spans of `aligned`.
    """
    remaining = iter(rows)
    lists = []
    for question, mentions in zip(questions, aligned, strict=True):
        left_out = {problem.mention for problem in mentions.problems if problem.is_left_out}
        lists.append(
            tuple(
                rows[:0, 0] if number in left_out else next(remaining)
                for number in range(len(question.mentions))
            )
        )
    return lists


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


@dataclasses.dataclass(frozen=True)
class Disambiguation:
    """Counts how often the right entity is among the candidates at the gold spans.

    Attributes:
      total: number of gold mentions; a mention outside the catalogue can only be a miss.
      hits: [C] int, number of gold mentions whose entity is among the first 1, 2, ... C candidates.
    """

    total: int
    hits: np.ndarray

    @property
    def accuracy(self) -> float:
        """Returns the share of gold mentions whose first candidate is right."""
        return self.recall(1)

    def recall(self, c: int) -> float:
        """Returns the share of gold mentions whose entity is among the first c candidates."""
        if not self.total or not len(self.hits):
            return 0.0
        return float(self.hits[min(c, len(self.hits)) - 1] / self.total)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Counts right and wrong links of labelled questions at any threshold.

    Attributes:
      results: records, one per question.
      decoded_at: threshold that the predictions were made with; lower thresholds are refused.
      problems: gold mentions that no link can be equal to.

    Raises:
      ElqError: a question has not as many gold_candidates as gold mentions.
    """

    results: Sequence[QuestionResult]
    decoded_at: float = -np.inf
    problems: Sequence[MentionProblem] = ()

    def __post_init__(self):
        for result in self.results:
            lists = result.gold_candidates
            if lists is not None and len(lists) != len(result.gold):
                raise ElqError(
                    f"question {result.id!r}: gold_candidates has {len(lists)} entries, expected "
                    f"one for each of the {len(result.gold)} gold mentions"
                )

    def in_catalogue(self) -> Evaluation:
        """Returns the evaluation of those questions whose gold is all in the catalogue."""
        results = [r for r in self.results if all(gold.row >= 0 for gold in r.gold)]
        return Evaluation(results, self.decoded_at)

    def counts(self, threshold: float, *, mentions_only: bool = False) -> Counts:
        """Counts the predictions with score > threshold.

        Gold mentions outside the catalogue cannot be matched and so count as misses.

        Args:
          threshold: score that a prediction must exceed, at least `decoded_at`.
          mentions_only: whether only spans are compared, not entities (mention detection).

        Raises:
          ElqError: the threshold is below `decoded_at`.
        """
        return Counts(*self._table(threshold, mentions_only).sum(axis=0).tolist())

    def f1_interval(
        self,
        threshold: float,
        metric: Metric = "weak",
        *,
        mentions_only: bool = False,
        confidence: float = 0.95,
        resamples: int = RESAMPLES,
        seed: int = 0,
    ) -> tuple[float, float]:
        """Computes the percentile bootstrap interval of F1, drawing whole questions."""
        table = self._table(threshold, mentions_only)
        return f1_intervals(table, confidence, resamples, seed)[metric]

    def _table(self, threshold: float, mentions_only: bool = False) -> np.ndarray:
        """Counts by question, [questions, 4] int: weak, strong, predicted, gold."""
        self._check(threshold)
        return count_by_question(self.results, threshold, mentions_only)

    def _check(self, threshold: float) -> None:
        if threshold < self.decoded_at:
            raise ElqError(
                f"threshold {threshold:g} is below {self.decoded_at:g}, with which the predictions "
                "were made, so links with lower scores were not kept; predict again at the lower "
                "threshold"
            )

    @functools.cached_property
    def sweep(self) -> Sweep:
        """Counts at every threshold that makes a difference."""
        return sweep_thresholds(self.results, self.decoded_at)

    def errors(self, threshold: float, catalogue: Catalogue | None = None) -> list[dict[str, Any]]:
        """Lists the errors at a threshold, see `list_errors`."""
        self._check(threshold)
        return list_errors(self.results, threshold, catalogue)

    def disambiguation(self) -> Disambiguation | None:
        """Computes accuracy and recall at gold spans; None if no question has `gold_candidates`."""
        pairs = [
            (gold.row, np.asarray(rows))
            for result in self.results
            if result.gold_candidates is not None
            for gold, rows in zip(result.gold, result.gold_candidates, strict=True)
        ]
        if all(result.gold_candidates is None for result in self.results):
            return None
        hits = np.zeros(max((len(rows) for _, rows in pairs), default=0), np.int64)
        for row, rows in pairs:
            places = np.flatnonzero(rows == row)
            if row >= 0 and len(places):
                hits[places[0]] += 1
        return Disambiguation(len(pairs), hits.cumsum())

    def report(
        self, threshold: float, *, resamples: int = RESAMPLES, seed: int = 0
    ) -> dict[str, Any]:
        """Returns all scores at a threshold as a JSON-able dict; `print_report` shows it.

        Keys: threshold; all and in_catalogue (questions, gold, predicted, weak, strong; the last
        two with correct, precision, recall, f1, f1_interval); mention_detection (the same, entities
        ignored, all questions); disambiguation (None, or all and in_catalogue with total, accuracy
        and recall by number of candidates); errors (number of each kind).

        Args:
          threshold: score that a prediction must exceed, at least `decoded_at`.
          resamples: number of resamples of the bootstrap; 0 leaves the intervals out.
          seed: seed of the bootstrap.
        """
        in_catalogue = self.in_catalogue()
        disambiguation = None
        if self.disambiguation() is not None:
            parts = (
                ("in_catalogue", in_catalogue.disambiguation()),
                ("all", self.disambiguation()),
            )
            disambiguation = {name: _show_disambiguation(part) for name, part in parts if part}
        kinds = collections.Counter(error["error"] for error in self.errors(threshold))
        settings = {"resamples": resamples, "seed": seed}
        return {
            "threshold": float(threshold),
            "all": _show_counts(self, threshold, **settings),
            "in_catalogue": _show_counts(in_catalogue, threshold, **settings),
            "mention_detection": _show_counts(self, threshold, mentions_only=True, **settings),
            "disambiguation": disambiguation,
            "errors": {kind: kinds[kind] for kind in ERRORS},
        }


def _show_counts(
    evaluation: Evaluation, threshold: float, resamples: int, seed: int, mentions_only: bool = False
) -> dict[str, Any]:
    table = evaluation._table(threshold, mentions_only)
    counts = Counts(*table.sum(axis=0).tolist())
    report: dict[str, Any] = {
        "questions": len(table),
        "gold": counts.gold,
        "predicted": counts.predicted,
    }
    for metric in ("weak", "strong"):
        report[metric] = counts.scores(metric)
    if resamples:
        for metric, interval in f1_intervals(table, resamples=resamples, seed=seed).items():
            report[metric]["f1_interval"] = list(interval)
    return report


def _show_disambiguation(part: Disambiguation) -> dict[str, Any]:
    most = len(part.hits)
    cuts = sorted({c for c in (1, 5, 10, 100, most) if 0 < c <= most})
    recall = {str(c): part.recall(c) for c in cuts}
    return {"total": part.total, "accuracy": part.accuracy, "recall": recall}
