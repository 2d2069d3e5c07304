"""Counts correct links at every threshold, and computes confidence intervals of F1.

Predictions are made once, at a low threshold. Raising a joint-score threshold afterwards only cuts
the list, because greedy overlap resolution goes from the highest score down and never depends on
lower scores. Filtering by score therefore equals decoding again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from elq_jax.evaluation.matching import Metric, QuestionResult, count_matches, triples

RESAMPLES = 9999


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Holds counts at every threshold that makes a difference, from the highest down.

    Attributes:
      thresholds: [n] float64, descending. No score exceeds the first; each of the others lies
        halfway between two neighbouring scores.
      lowest_scores: [n] float64, lowest score above each threshold (first: inf).
      weak: [n] int, number of weakly correct predictions above the threshold.
      strong: [n] int, number of strongly correct predictions above the threshold.
      predicted: [n] int, number of predictions above the threshold.
      gold: number of gold mentions.
    """

    thresholds: np.ndarray
    lowest_scores: np.ndarray
    weak: np.ndarray
    strong: np.ndarray
    predicted: np.ndarray
    gold: int

    def precision(self, metric: Metric = "weak") -> np.ndarray:
        """Computes precision [n] float64 at each threshold; 0 where nothing is predicted."""
        return getattr(self, metric) / np.maximum(self.predicted, 1)

    def recall(self, metric: Metric = "weak") -> np.ndarray:
        """Computes recall [n] float64 at each threshold."""
        return getattr(self, metric) / max(self.gold, 1)

    def f1(self, metric: Metric = "weak") -> np.ndarray:
        """Computes F1 [n] float64 at each threshold."""
        return 2 * getattr(self, metric) / np.maximum(self.predicted + self.gold, 1)

    def best_threshold(self, metric: Metric = "weak") -> float:
        """Finds the threshold of the highest F1 (weak by default, the measure reported for ELQ).

        Of several equally good thresholds it returns the highest.
        """
        return float(self.thresholds[self.f1(metric).argmax()])

    def index(self, threshold: float) -> int:
        """Finds the number, 0 to n - 1, of the point that has the counts at a threshold."""
        return int((self.lowest_scores[1:] > threshold).sum())


def sweep_thresholds(results: Sequence[QuestionResult], decoded_at: float = -np.inf) -> Sweep:
    """Counts correct links at every threshold, in one pass over the predictions.

    Args:
      results: questions with predictions of any score above `decoded_at`.
      decoded_at: threshold that the predictions were made with, the lowest of the sweep.
    """
    links = [(link.score, q) for q, r in enumerate(results) for link in r.predicted]
    links.sort(reverse=True)
    gold = [triples(result.gold) for result in results]
    predicted = [
        triples(sorted(result.predicted, key=lambda link: -link.score)) for result in results
    ]
    sizes, matches = [0] * len(gold), [(0, 0)] * len(gold)
    weak, strong, points = 0, 0, []
    for number, (score, q) in enumerate(links, 1):
        sizes[q] += 1
        old, matches[q] = matches[q], count_matches(gold[q], predicted[q][: sizes[q]])
        weak, strong = weak + matches[q][0] - old[0], strong + matches[q][1] - old[1]
        if number == len(links) or links[number][0] < score:
            points.append((weak, strong, number))
    scores = np.array(sorted({score for score, _ in links}, reverse=True), np.float64)
    middles = (scores[:-1] + scores[1:]) / 2
    middles = np.where(middles < scores[:-1], middles, scores[1:])  # neighbours in float64
    lowest = decoded_at if np.isfinite(decoded_at) else scores.min(initial=0.0) - 1
    return Sweep(
        np.array([*scores[:1], *middles, lowest]),
        np.array([np.inf, *scores]),
        *np.array([(0, 0, 0), *points], np.int64).T,
        gold=sum(map(len, gold)),
    )


def f1_intervals(
    table: np.ndarray, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> dict[Metric, tuple[float, float]]:
    """Computes percentile bootstrap intervals of the F1 scores, drawing whole questions.

    Args:
      table: [Q, 4] int, counts by `matching.count_by_question`.
      confidence: share of the resamples inside the interval.
      resamples: number of times that Q questions are drawn.
      seed: seed of the draws.

    Returns:
      (low, high) for "weak" and "strong"; (0, 0) without questions.
    """
    from scipy import stats  # half a second to import

    def scores(weak, strong, predicted, gold, axis=-1):
        total = np.maximum(predicted.sum(axis) + gold.sum(axis), 1)
        return np.stack([2 * weak.sum(axis) / total, 2 * strong.sum(axis) / total])

    if len(table) < 2:  # every resample is the same
        low = high = scores(*table.T)
    else:
        interval = stats.bootstrap(
            tuple(table.T),
            scores,
            paired=True,
            vectorized=True,
            method="percentile",
            confidence_level=confidence,
            n_resamples=resamples,
            batch=max(1, 1_000_000 // len(table)),
            rng=np.random.default_rng(seed),
        ).confidence_interval
        low, high = interval
    return {"weak": (float(low[0]), float(high[0])), "strong": (float(low[1]), float(high[1]))}
