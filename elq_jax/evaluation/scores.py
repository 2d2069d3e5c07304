"""Scores of a linker: right and wrong links of labelled questions, counted at any threshold."""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from elq_jax.core.errors import ElqError
from elq_jax.evaluation.bootstrap import RESAMPLES, f1_intervals
from elq_jax.evaluation.calibration import calibration_report
from elq_jax.evaluation.errors import ERRORS, list_errors
from elq_jax.evaluation.matching import (
    Counts,
    Metric,
    Part,
    QuestionResult,
    count_by_question,
    links_for_calibration,
)
from elq_jax.evaluation.sweep import Sweep, sweep_thresholds
from elq_jax.questions.align import MentionProblem

if TYPE_CHECKING:
    from elq_jax.entities.catalogue import Catalogue


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

    def of_catalogue_mentions(self) -> Evaluation:
        """Returns the evaluation with gold mentions outside the catalogue as neutral spans.

        Documents seldom have all their mentions in the catalogue. So linkers of different
        catalogues are compared by the mentions that are: links elsewhere are neither right nor
        wrong.
        """
        results = []
        for result in self.results:
            known = [gold.row >= 0 for gold in result.gold]
            outside = ((gold.start, gold.end) for gold in result.gold if gold.row < 0)
            candidates = result.gold_candidates
            results.append(
                dataclasses.replace(
                    result,
                    gold=tuple(itertools.compress(result.gold, known)),
                    gold_candidates=candidates and tuple(itertools.compress(candidates, known)),
                    neutral=(*result.neutral, *outside),
                )
            )
        return Evaluation(results, self.decoded_at)

    def counts(self, threshold: float, part: Part = "links") -> Counts:
        """Counts the predictions with score > threshold.

        Args:
          threshold: score that a prediction must exceed, at least `decoded_at`.
          part: what is counted, see `matching.count_by_question`. By default, links; gold mentions
            outside the catalogue cannot be matched and so are misses.

        Raises:
          ElqError: the threshold is below `decoded_at`.
        """
        return Counts(*self.table(threshold, part).sum(axis=0).tolist())

    def f1_interval(
        self,
        threshold: float,
        metric: Metric = "weak",
        part: Part = "links",
        *,
        confidence: float = 0.95,
        resamples: int = RESAMPLES,
        seed: int = 0,
    ) -> tuple[float, float]:
        """Computes the percentile bootstrap interval of F1, drawing whole questions."""
        return f1_intervals([self.table(threshold, part)], confidence, resamples, seed)[metric]

    def table(self, threshold: float, part: Part = "links") -> np.ndarray:
        """Counts question by question, see `matching.count_by_question`."""
        self._check(threshold)
        return count_by_question(self.results, threshold, part)

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

        Keys: threshold; all, in_catalogue and catalogue_mentions (questions, gold, predicted, weak,
        strong; the last two with correct, precision, recall, f1, f1_interval), of all questions,
        of `in_catalogue` and of `of_catalogue_mentions`; mention_detection (the same, entities
        ignored, all questions); nil (the same, for mentions of something outside the catalogue);
        disambiguation (None, or all and in_catalogue with total, accuracy and recall by number of
        candidates); calibration (weak and strong, see `calibration_report`); errors (number of each
        kind).

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
        settings = (threshold, resamples, seed)
        probabilities, right = links_for_calibration(self.results, threshold)
        gold = sum(len(result.gold) for result in self.results)
        return {
            "threshold": float(threshold),
            "all": _show_counts(self, "links", *settings),
            "in_catalogue": _show_counts(in_catalogue, "links", *settings),
            "catalogue_mentions": _show_counts(self.of_catalogue_mentions(), "links", *settings),
            "mention_detection": _show_counts(self, "mentions", *settings),
            "nil": _show_counts(self, "nil", *settings),
            "disambiguation": disambiguation,
            "calibration": {
                metric: calibration_report(probabilities, mask, gold)
                for metric, mask in right.items()
            },
            "errors": {kind: kinds[kind] for kind in ERRORS},
        }


def _show_counts(
    evaluation: Evaluation, part: Part, threshold: float, resamples: int, seed: int
) -> dict[str, Any]:
    table = evaluation.table(threshold, part)
    counts = Counts(*table.sum(axis=0).tolist())
    report: dict[str, Any] = {
        "questions": len(table),
        "gold": counts.gold,
        "predicted": counts.predicted,
    }
    for metric in ("weak", "strong"):
        report[metric] = counts.scores(metric)
    if resamples:
        for metric, interval in f1_intervals([table], resamples=resamples, seed=seed).items():
            report[metric]["f1_interval"] = list(interval)
    return report


def _show_disambiguation(part: Disambiguation) -> dict[str, Any]:
    most = len(part.hits)
    cuts = sorted({c for c in (1, 5, 10, 100, most) if 0 < c <= most})
    recall = {str(c): part.recall(c) for c in cuts}
    return {"total": part.total, "accuracy": part.accuracy, "recall": recall}
