"""Counts correct links at every threshold, and finds the best one, for one or several sets.

Predictions are made once, at a low threshold. Raising a joint-score threshold afterwards only cuts
the list, because greedy overlap resolution goes from the highest score down and never depends on
lower scores. Filtering by score therefore equals decoding again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from elq_jax.evaluation.matching import Metric, QuestionResult, count_matches, triples


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
    in_catalogue = [[link for link in r.counted() if link.row >= 0] for r in results]
    links = [(link.score, q) for q, links in enumerate(in_catalogue) for link in links]
    links.sort(reverse=True)
    gold = [triples(result.gold) for result in results]
    predicted = [triples(sorted(links, key=lambda link: -link.score)) for links in in_catalogue]
    sizes, matches = [0] * len(gold), [(0, 0)] * len(gold)
    weak, strong, points = 0, 0, []
    for number, (score, q) in enumerate(links, 1):
        sizes[q] += 1
        old, matches[q] = matches[q], count_matches(gold[q], predicted[q][: sizes[q]])
        weak, strong = weak + matches[q][0] - old[0], strong + matches[q][1] - old[1]
        if number == len(links) or links[number][0] < score:
            points.append((weak, strong, number))
    scores = np.unique([score for score, _ in links])[::-1]
    return Sweep(
        _between(scores, decoded_at),
        np.array([np.inf, *scores]),
        *np.array([(0, 0, 0), *points], np.int64).T,
        gold=sum(map(len, gold)),
    )


def best_common_threshold(
    sweeps: Sequence[Sweep], metric: Metric = "weak"
) -> tuple[float, np.ndarray]:
    """Finds the threshold with the highest mean of F1 over several sets, each counted as much.

    Args:
      sweeps: sweep of each set, all decoded at the same threshold.
      metric: F1 that decides.

    Returns:
      the threshold, the highest of equally good ones, and the F1 of each set there, [sets] float64.
    """
    scores = np.unique(np.concatenate([sweep.lowest_scores[1:] for sweep in sweeps]))[::-1]
    thresholds = _between(scores, min(sweep.thresholds[-1] for sweep in sweeps))
    f1 = np.stack(
        [sweep.f1(metric)[[sweep.index(threshold) for threshold in thresholds]] for sweep in sweeps]
    )
    best = f1.mean(axis=0).argmax()
    return float(thresholds[best]), f1[:, best]


def _between(scores: np.ndarray, decoded_at: float) -> np.ndarray:
    """Returns thresholds [n + 1]: the highest of n descending scores, those between, the lowest."""
    middles = (scores[:-1] + scores[1:]) / 2
    middles = np.where(middles < scores[:-1], middles, scores[1:])  # neighbours in float64
    lowest = decoded_at if np.isfinite(decoded_at) else scores.min(initial=0.0) - 1
    return np.array([*scores[:1], *middles, lowest])
