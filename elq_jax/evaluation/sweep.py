"""Scores, threshold sweeps, curves and errors of a linker on labelled questions.

Everything is computed from plain records, so any linker can be measured. The predictions are made
once, at a low threshold, and kept with their scores: raising a joint-score threshold afterwards
only cuts the list, because greedy overlap resolution goes from the highest score down and so never
looks at what lies below. Filtering by score therefore equals decoding again.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from elq_jax.core.errors import ElqError
from elq_jax.evaluation.matching import Counts, Metric, count_matches

if TYPE_CHECKING:
    pass

Titles = Callable[[Sequence[int]], Sequence[str]]

ERRORS = ("missed", "spurious", "wrong_entity", "wrong_bounds")


@dataclasses.dataclass(frozen=True, slots=True)
class Gold:
    """A labelled mention: half-open character offsets, catalogue row (-1: not in the catalogue)."""

    start: int
    end: int
    row: int
    title: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Predicted:
    """A predicted link: half-open character offsets, catalogue row, score, candidate rows [C]."""

    start: int
    end: int
    row: int
    score: float
    candidates: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class QuestionResult:
    """One question, what should be found in it and what was.

    Attributes:
      id: any name.
      text: the question.
      gold: labelled mentions.
      predicted: links whose overlaps are resolved, in any order.
      gold_candidates: for each gold mention, the candidate rows retrieved for its very span, best
        first (empty where the span could not be encoded); None if not computed.
    """

    id: str
    text: str
    gold: tuple[Gold, ...]
    predicted: tuple[Predicted, ...]
    gold_candidates: tuple[Sequence[int], ...] | None = None


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Counts at every threshold that makes a difference, from the highest down.

    Attributes:
      thresholds: [n] float64, descending; the first lets nothing through, each later one lies
        halfway between two neighbouring scores.
      lowest_scores: [n] float64, the lowest score that each threshold lets through (first: inf).
      weak: [n] int, weakly correct predictions above the threshold.
      strong: [n] int, strongly correct ones.
      predicted: [n] int, all of them.
      gold: number of gold mentions.
    """

    thresholds: np.ndarray
    lowest_scores: np.ndarray
    weak: np.ndarray
    strong: np.ndarray
    predicted: np.ndarray
    gold: int

    def precision(self, metric: Metric = "weak") -> np.ndarray:
        """[n] float64; 0 where nothing is predicted."""
        return getattr(self, metric) / np.maximum(self.predicted, 1)

    def recall(self, metric: Metric = "weak") -> np.ndarray:
        """[n] float64."""
        return getattr(self, metric) / max(self.gold, 1)

    def f1(self, metric: Metric = "weak") -> np.ndarray:
        """[n] float64."""
        return 2 * getattr(self, metric) / np.maximum(self.predicted + self.gold, 1)

    def best_threshold(self, metric: Metric = "weak") -> float:
        """Threshold of the highest F1 (weak by default, the measure reported for ELQ).

        The highest such threshold where several are equally good.
        """
        return float(self.thresholds[self.f1(metric).argmax()])

    def index(self, threshold: float) -> int:
        """Which of the n points holds at any threshold, one of `thresholds` or not."""
        return int((self.lowest_scores[1:] > threshold).sum())


@dataclasses.dataclass(frozen=True)
class Disambiguation:
    """Ranking of the right entity when the mention spans are given.

    Attributes:
      total: gold mentions; one outside the catalogue can only be a miss.
      hits: [C] int, gold mentions whose entity is among the first 1, 2, ... C candidates.
    """

    total: int
    hits: np.ndarray

    @property
    def accuracy(self) -> float:
        """Share of gold mentions whose first candidate is right."""
        return self.recall(1)

    def recall(self, c: int) -> float:
        """Share of gold mentions whose entity is among the first c candidates."""
        if not self.total or not len(self.hits):
            return 0.0
        return float(self.hits[min(c, len(self.hits)) - 1] / self.total)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Labelled questions with predictions, measured at any threshold.

    Attributes:
      results: one record per question.
      decoded_at: the threshold with which the predictions were made; lower ones are refused.

    Raises:
      ElqError: gold_candidates that do not fit the gold mentions.
    """

    results: Sequence[QuestionResult]
    decoded_at: float = -np.inf

    def __post_init__(self):
        for result in self.results:
            lists = result.gold_candidates
            if lists is not None and len(lists) != len(result.gold):
                raise ElqError(
                    f"question {result.id!r}: gold_candidates has {len(lists)} entries, expected "
                    f"one for each of the {len(result.gold)} gold mentions"
                )

    def in_catalogue(self) -> Evaluation:
        """The same, for the questions whose gold mentions are all in the catalogue."""
        results = [r for r in self.results if all(gold.row >= 0 for gold in r.gold)]
        return Evaluation(results, self.decoded_at)

    def counts(self, threshold: float, *, mentions_only: bool = False) -> Counts:
        """Counts of the predictions with score > threshold.

        Gold mentions outside the catalogue cannot be matched and so count as misses.

        Args:
          threshold: at least `decoded_at`.
          mentions_only: compare spans and ignore entities (mention detection).

        Raises:
          ElqError: threshold below `decoded_at`.
        """
        return _sum(self._question_counts(threshold, mentions_only))

    def f1_interval(
        self,
        threshold: float,
        metric: Metric = "weak",
        *,
        mentions_only: bool = False,
        confidence: float = 0.95,
        resamples: int = 1000,
        seed: int = 0,
    ) -> tuple[float, float]:
        """Percentile bootstrap interval of the F1 score, drawing whole questions."""
        table = self._question_counts(threshold, mentions_only)
        if not len(table):
            return 0.0, 0.0
        rng = np.random.default_rng(seed)
        draws = (table[rng.integers(0, len(table), len(table))] for _ in range(resamples))
        scores = [getattr(_sum(draw), f"{metric}_f1") for draw in draws]
        low, high = np.quantile(scores, [(1 - confidence) / 2, (1 + confidence) / 2])
        return float(low), float(high)

    def _question_counts(self, threshold: float, mentions_only: bool) -> np.ndarray:
        """[questions, 4] int: weak, strong, predicted, gold."""
        self._check(threshold)
        rows = []
        for result in self.results:
            kept = [link for link in result.predicted if link.score > threshold]
            gold, predicted = (_triples(links, mentions_only) for links in (result.gold, kept))
            rows.append((*count_matches(gold, predicted), len(predicted), len(gold)))
        return np.array(rows, np.int64).reshape(-1, 4)

    def _check(self, threshold: float) -> None:
        if threshold < self.decoded_at:
            raise ElqError(
                f"threshold {threshold:g} is below {self.decoded_at:g}, with which the predictions "
                "were made; links below that are not there to be counted. Predict again with a "
                "lower threshold"
            )

    @functools.cached_property
    def sweep(self) -> Sweep:
        """Counts at every distinct score, in one pass over the predictions."""
        links = [(link.score, q) for q, r in enumerate(self.results) for link in r.predicted]
        links.sort(reverse=True)
        gold = [_triples(result.gold) for result in self.results]
        predicted = [
            _triples(sorted(result.predicted, key=lambda link: -link.score))
            for result in self.results
        ]
        shown, matches = [0] * len(gold), [(0, 0)] * len(gold)
        weak, strong, points = 0, 0, []
        for number, (score, q) in enumerate(links, 1):
            shown[q] += 1
            old, matches[q] = matches[q], count_matches(gold[q], predicted[q][: shown[q]])
            weak, strong = weak + matches[q][0] - old[0], strong + matches[q][1] - old[1]
            if number == len(links) or links[number][0] < score:
                points.append((weak, strong, number))
        scores = np.array(sorted({score for score, _ in links}, reverse=True), np.float64)
        middles = (scores[:-1] + scores[1:]) / 2
        middles = np.where(middles < scores[:-1], middles, scores[1:])  # neighbours in float64
        lowest = self.decoded_at if np.isfinite(self.decoded_at) else scores.min(initial=0.0) - 1
        return Sweep(
            np.array([*scores[:1], *middles, lowest]),
            np.array([np.inf, *scores]),
            *np.array([(0, 0, 0), *points], np.int64).T,
            gold=sum(map(len, gold)),
        )

    def disambiguation(self) -> Disambiguation | None:
        """Accuracy and recall at gold spans; None when no question has `gold_candidates`."""
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

    def errors(self, threshold: float, titles: Titles | None = None) -> list[dict[str, Any]]:
        """What is wrong at a threshold, one JSON-able record per error.

        Exact links are set aside. Of the rest, a prediction that overlaps a gold mention is paired
        with it (same entity first, then the highest score): `wrong_bounds` when the entity is
        right, else `wrong_entity`. A gold mention left over is `missed`, a prediction left over is
        `spurious`.

        Args:
          threshold: at least `decoded_at`.
          titles: catalogue rows to titles, such as `Catalogue.titles`.

        Returns:
          Records with id, text, error, gold and predicted (each start, end, mention, entity, title;
          predicted also score; None where there is none) and gold_rank, the 0-based place of the
          gold entity among the candidates of the prediction (None: absent or not known).
        """
        self._check(threshold)
        found = [
            (result, *error) for result in self.results for error in _errors(result, threshold)
        ]
        rows = sorted(
            {link.row for _, _, *pair in found for link in pair if link and link.row >= 0}
        )
        names = dict(zip(rows, titles(rows), strict=True)) if titles and rows else {}

        def show(link: Gold | Predicted | None, text: str) -> dict[str, Any] | None:
            if link is None:
                return None
            record = {
                "start": link.start,
                "end": link.end,
                "mention": text[link.start : link.end],
                "entity": link.row if link.row >= 0 else None,
                "title": names.get(link.row, getattr(link, "title", None)),
            }
            return record if isinstance(link, Gold) else record | {"score": link.score}

        records = []
        for result, kind, gold, predicted in found:
            ranked = gold and predicted and gold.row >= 0 and gold.row in predicted.candidates
            records.append(
                {
                    "id": result.id,
                    "text": result.text,
                    "error": kind,
                    "gold": show(gold, result.text),
                    "predicted": show(predicted, result.text),
                    "gold_rank": predicted.candidates.index(gold.row) if ranked else None,
                }
            )
        return records

    def report(self, threshold: float, *, resamples: int = 1000, seed: int = 0) -> dict[str, Any]:
        """Every score at one threshold as a JSON-able dict; `print_report` shows it.

        Keys: threshold; all and in_catalogue (questions, gold, predicted, weak, strong; the last
        two with correct, precision, recall, f1, f1_interval); mention_detection (the same, entities
        ignored, all questions); disambiguation (None, or all and in_catalogue with total, accuracy
        and recall by number of candidates); errors (number of each kind).

        Args:
          threshold: at least `decoded_at`.
          resamples: of the bootstrap; 0 leaves the intervals out.
          seed: of the bootstrap.
        """
        known = self.in_catalogue()
        disambiguation = None
        if self.disambiguation() is not None:
            parts = (("in_catalogue", known.disambiguation()), ("all", self.disambiguation()))
            disambiguation = {name: _show_disambiguation(part) for name, part in parts if part}
        kinds = collections.Counter(error["error"] for error in self.errors(threshold))
        settings = {"resamples": resamples, "seed": seed}
        return {
            "threshold": float(threshold),
            "all": _show_counts(self, threshold, **settings),
            "in_catalogue": _show_counts(known, threshold, **settings),
            "mention_detection": _show_counts(self, threshold, mentions_only=True, **settings),
            "disambiguation": disambiguation,
            "errors": {kind: kinds[kind] for kind in ERRORS},
        }


def _sum(table: np.ndarray) -> Counts:
    return Counts(*table.sum(axis=0).tolist())


def _triples(links: Sequence[Gold | Predicted], mentions_only: bool = False) -> list[tuple]:
    """For `count_matches`; rows outside the catalogue become the empty id, which nothing has."""
    return [
        (None if mentions_only or link.row < 0 else link.row, link.start, link.end)
        for link in links
    ]


def _errors(
    result: QuestionResult, threshold: float
) -> Iterator[tuple[str, Gold | None, Predicted | None]]:
    """(kind, gold, predicted) of one question, in the order of the text."""
    kept = sorted(
        (link for link in result.predicted if link.score > threshold), key=lambda link: -link.score
    )
    exact = {(g.row, g.start, g.end) for g in result.gold if g.row >= 0}
    exact &= {(p.row, p.start, p.end) for p in kept}
    gold = [g for g in result.gold if (g.row, g.start, g.end) not in exact]
    kept = [p for p in kept if (p.row, p.start, p.end) not in exact]
    found: list[tuple[str, Gold | None, Predicted | None]] = []
    for kind in ("wrong_bounds", "wrong_entity"):
        for p in list(kept):
            for g in gold:
                overlap = max(g.start, p.start) < min(g.end, p.end)
                if overlap and (kind == "wrong_entity" or g.row == p.row):
                    found.append((kind, g, p))
                    gold.remove(g)
                    kept.remove(p)
                    break
    found += [("missed", g, None) for g in gold] + [("spurious", None, p) for p in kept]
    return iter(sorted(found, key=lambda error: (error[1] or error[2]).start))


def _show_counts(
    evaluation: Evaluation, threshold: float, resamples: int, seed: int, mentions_only: bool = False
) -> dict[str, Any]:
    counts = evaluation.counts(threshold, mentions_only=mentions_only)
    shown: dict[str, Any] = {
        "questions": len(evaluation.results),
        "gold": counts.gold,
        "predicted": counts.predicted,
    }
    for metric in ("weak", "strong"):
        shown[metric] = counts.scores(metric)
        if resamples:
            interval = evaluation.f1_interval(
                threshold, metric, mentions_only=mentions_only, resamples=resamples, seed=seed
            )
            shown[metric]["f1_interval"] = list(interval)
    return shown


def _show_disambiguation(part: Disambiguation) -> dict[str, Any]:
    most = len(part.hits)
    cuts = sorted({c for c in (1, 5, 10, 100, most) if 0 < c <= most})
    recall = {str(c): part.recall(c) for c in cuts}
    return {"total": part.total, "accuracy": part.accuracy, "recall": recall}
