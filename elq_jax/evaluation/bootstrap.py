"""Confidence intervals of F1 and of differences of F1, from questions drawn again and again.

Source: Efron and Tibshirani, "An introduction to the bootstrap" (1993): percentile intervals.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from elq_jax.core.errors import ElqError
from elq_jax.evaluation.matching import Metric

RESAMPLES = 9999
_CELLS = 2_000_000  # Largest number of questions drawn at a time.


def f1_intervals(
    tables: Sequence[np.ndarray],
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[Metric, tuple[float, float]]:
    """Computes percentile bootstrap intervals of F1, or of its mean over several sets.

    Args:
      tables: counts of each set by `matching.count_by_question`, [Q, 4] int.
      confidence: share of the resamples inside the interval.
      resamples: number of times that the Q questions of each set are drawn.
      seed: seed of the draws.

    Returns:
      (low, high) for "weak" and "strong"; (0, 0) without questions.
    """
    means = f1_of(resampled_sums(tables, resamples, seed)).mean(axis=0)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return {"weak": (float(low[0]), float(high[0])), "strong": (float(low[1]), float(high[1]))}


@dataclasses.dataclass(frozen=True)
class Difference:
    """Holds how much higher the F1 of a run is than that of another on the same questions.

    Attributes:
      f1: F1 of the run, or its mean over several sets.
      other_f1: F1 of the other run.
      interval: percentile bootstrap interval of the difference, 95%.
      p_value: two-sided p-value of a difference of 0: twice the share of the resamples in which the
        run that is better is not, at most 1.
    """

    f1: float
    other_f1: float
    interval: tuple[float, float]
    p_value: float

    @property
    def difference(self) -> float:
        """Returns F1 less the F1 of the other run."""
        return self.f1 - self.other_f1


def paired_differences(
    tables: Sequence[np.ndarray],
    others: Sequence[np.ndarray],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[Metric, Difference]:
    """Compares two runs by drawing the same questions for both.

    Args:
      tables: counts of a run on each set by `matching.count_by_question`, [Q, 4] int.
      others: counts of another run on the same questions, in the same order.
      resamples: number of times that the Q questions of each set are drawn.
      seed: seed of the draws.

    Returns:
      differences of "weak" and "strong" F1; of their means over the sets, where there are several.

    Raises:
      ElqError: the tables are not of as many questions.
    """
    sizes = [[len(table) for table in side] for side in (tables, others)]
    if sizes[0] != sizes[1]:
        raise ElqError(f"tables, others: {sizes[0]} and {sizes[1]} questions; expected the same")
    pairs = [np.hstack(pair) for pair in zip(tables, others, strict=True)]
    sums = resampled_sums(pairs, resamples, seed)
    drawn = (f1_of(sums[..., :4]) - f1_of(sums[..., 4:])).mean(axis=0)
    f1, other_f1 = (
        f1_of(np.array([table.sum(axis=0) for table in side])).mean(axis=0)
        for side in (tables, others)
    )
    differences: dict[Metric, Difference] = {}
    for place, metric in enumerate(("weak", "strong")):
        values = drawn[:, place]
        # The run as it is counts as one more resample, so that no p-value is 0.
        rarer = min((values <= 0).sum(), (values >= 0).sum()) + 1
        low, high = np.quantile(values, [0.025, 0.975])
        differences[metric] = Difference(
            float(f1[place]),
            float(other_f1[place]),
            (float(low), float(high)),
            min(1.0, float(2 * rarer / (resamples + 1))),
        )
    return differences


def f1_of(counts: np.ndarray) -> np.ndarray:
    """Computes weak and strong F1, [..., 2] float64, of counts [..., 4]; 0 where undefined."""
    total = counts[..., 2:3] + counts[..., 3:4]
    return 2 * counts[..., :2] / np.maximum(total, 1)


def resampled_sums(tables: Sequence[np.ndarray], resamples: int, seed: int) -> np.ndarray:
    """Draws Q questions with replacement from each set, again and again, and sums their counts.

    Args:
      tables: counts of each set, [Q, F] int; Q may differ between sets.
      resamples: number of draws, R.
      seed: seed of the draws.

    Returns:
      [sets, R, F] int64; zeros for a set without questions.
    """
    rng = np.random.default_rng(seed)
    sums = np.zeros((len(tables), resamples, tables[0].shape[1]), np.int64)
    for of_set, table in zip(sums, tables, strict=True):
        questions = len(table)
        step = max(1, _CELLS // max(questions, 1))
        for start in range(0, resamples if questions else 0, step):
            part = of_set[start : start + step]
            draws = rng.integers(0, questions, (len(part), questions), np.int32)
            for field, column in enumerate(table.T):
                part[:, field] = np.take(column, draws).sum(axis=1)
    return sums
