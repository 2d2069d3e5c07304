"""Compares the probabilities of links with how often they are right.

All functions take parallel arrays, one entry for each link:

    probabilities   [n] float, in [0, 1]
    correct         [n] bool

so it does not matter where the probabilities come from. Sources: Guo et al., "On calibration of
modern neural networks" (2017), for the expected calibration error; Nguyen and O'Connor, "Posterior
calibration and exploratory analysis for NLP models" (2015), for bins of equal mass; El-Yaniv and
Wiener, "On the foundations of noise-free selective classification" (2010), for accuracy and
coverage.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np

from elq_jax.core.errors import ElqError, check_count

BINS = 15
_EXACT = 1000
Binning = Literal["equal_mass", "fixed"]


@dataclasses.dataclass(frozen=True)
class Reliability:
    """Holds sums over the links of each of b bins; bins without links are left out.

    Attributes:
      links: [b] int64, number of links.
      probabilities: [b] float64, sum of their probabilities.
      correct: [b] int64, number of those that are right.
    """

    links: np.ndarray
    probabilities: np.ndarray
    correct: np.ndarray

    @property
    def error(self) -> float:
        """Returns the expected calibration error (ECE), 0 to 1; 0 without links.

        It is the mean over links of the distance, in the bin of the link, between mean probability
        and share of right links.
        """
        distance = np.abs(self.probabilities - self.correct).sum()
        return float(distance / max(self.links.sum(), 1))


def reliability(
    probabilities: np.ndarray,
    correct: np.ndarray,
    binning: Binning = "equal_mass",
    bins: int = BINS,
) -> Reliability:
    """Sums probabilities and right links in bins of similar probability.

    Args:
      probabilities: [n] float, probability of each link.
      correct: [n] bool, whether the link is right.
      binning: way to choose the bins. "equal_mass": bins of n / bins links each, from the lowest
        probability up; equal probabilities share a bin, that of the lowest rank among them.
        "fixed": bins of equal width in [0, 1], each without its upper bound, but the last.
      bins: number of bins.

    Raises:
      ElqError: the arrays are not as described above.

    Example: [.1, .2, .8, .9], [0, 0, 1, 1] in two bins -> links [2, 2], probabilities [.3, 1.7],
      correct [0, 2], error .15.
    """
    probabilities, correct = _checked(probabilities, correct)
    bin_of_link = _bins_of_links(probabilities, binning, bins)
    links = np.bincount(bin_of_link, minlength=bins)
    sums = [np.bincount(bin_of_link, part, bins)[links > 0] for part in (probabilities, correct)]
    return Reliability(links[links > 0], sums[0], sums[1].astype(np.int64))


def error_by_chance(
    probabilities: np.ndarray, binning: Binning = "equal_mass", bins: int = BINS
) -> float:
    """Computes the ECE to expect of probabilities that are exactly right, because links are few.

    The number of right links of a bin then has a Poisson binomial distribution. Its mean absolute
    deviation is computed exactly up to `_EXACT` links, and beyond by the normal distribution.

    Args:
      probabilities, binning, bins: arguments of `reliability`.

    Example: [.5, .5] in one bin: none, one or two are right, so the ECE is .5, 0 or .5; .25.
    """
    probabilities, _ = _checked(probabilities, np.zeros(len(probabilities), bool))
    bin_of_link, deviation = _bins_of_links(probabilities, binning, bins), 0.0
    for number in np.unique(bin_of_link):
        own = probabilities[bin_of_link == number]
        if len(own) > _EXACT:
            deviation += np.sqrt(2 / np.pi * (own * (1 - own)).sum())
            continue
        distribution = np.ones(1)  # of the number of right links
        for probability in own:
            distribution = np.convolve(distribution, [1 - probability, probability])
        deviation += distribution @ np.abs(np.arange(len(own) + 1) - own.sum())
    return float(deviation / max(len(probabilities), 1))


def _bins_of_links(probabilities: np.ndarray, binning: Binning, bins: int) -> np.ndarray:
    """Returns the number of the bin of each link, [n] int64; see `reliability`."""
    check_count("bins", bins)
    if binning == "fixed":
        return np.minimum((probabilities * bins).astype(np.int64), bins - 1)
    if binning != "equal_mass":
        raise ElqError(f"binning: {binning!r}; expected 'equal_mass' or 'fixed'")
    _, value, counts = np.unique(probabilities, return_inverse=True, return_counts=True)
    lowest_rank = counts.cumsum() - counts
    return (lowest_rank * bins // max(len(probabilities), 1))[value]


@dataclasses.dataclass(frozen=True)
class CoverageCurve:
    """Counts the right ones among the most probable links, at every cut that makes a difference.

    Attributes:
      thresholds: [m] float64, distinct probabilities, descending.
      kept: [m] int64, number of links with at least that probability.
      correct: [m] int64, number of those that are right.
    """

    thresholds: np.ndarray
    kept: np.ndarray
    correct: np.ndarray

    def coverage(self) -> np.ndarray:
        """Computes the share [m] float64 of the links that are kept."""
        return self.kept / self.kept.max(initial=1)

    def accuracy(self) -> np.ndarray:
        """Computes the share [m] float64 of the kept links that are right."""
        return self.correct / self.kept

    def accuracy_at(self, coverage: float) -> float | None:
        """Returns the accuracy of the fewest links that cover a share; None without links.

        Links of equal probability are kept or left out together.
        """
        if not len(self.kept):
            return None
        places = np.flatnonzero(self.coverage() >= coverage)
        return float(self.accuracy()[places[0]])


def coverage_curve(probabilities: np.ndarray, correct: np.ndarray) -> CoverageCurve:
    """Counts the right ones among the most probable links, at every cut.

    Args:
      probabilities: [n] float, probability of each link.
      correct: [n] bool, whether the link is right.

    Raises:
      ElqError: the arrays are not as described above.

    Example: [.9, .9, .2], [1, 0, 1] -> thresholds [.9, .2], kept [2, 3], correct [1, 2].
    """
    probabilities, correct = _checked(probabilities, correct)
    thresholds, value, counts = np.unique(-probabilities, return_inverse=True, return_counts=True)
    right = np.bincount(value, correct, len(thresholds)).astype(np.int64)
    return CoverageCurve(-thresholds, counts.cumsum(), right.cumsum())


def calibration_report(
    probabilities: np.ndarray, correct: np.ndarray, gold: int, bins: int = BINS
) -> dict[str, Any]:
    """Returns how well probabilities fit, as JSON values.

    Args:
      probabilities: [n] float, probability of each link.
      correct: [n] bool, whether the link is right.
      gold: number of gold mentions, right links or not.
      bins: number of bins.

    Returns:
      links, gold; mean_probability and accuracy (None without links); ece, by binning;
      ece_by_chance, that of `error_by_chance` for bins of equal mass; bins, by binning, each with
      links, probability and accuracy; accuracy_at, by coverage ("0.5"); and recall_at, by coverage:
      the share of the gold mentions that the kept links find.
    """
    parts = {
        name: reliability(probabilities, correct, name, bins) for name in ("equal_mass", "fixed")
    }
    curve, links = coverage_curve(probabilities, correct), len(probabilities)
    coverages = (0.25, 0.5, 0.75, 0.9, 1.0)
    accuracies = [curve.accuracy_at(coverage) for coverage in coverages]
    right = [curve.correct[curve.coverage() >= coverage][:1].sum() for coverage in coverages]
    return {
        "links": links,
        "gold": gold,
        "mean_probability": float(np.mean(probabilities)) if links else None,
        "accuracy": float(np.mean(correct)) if links else None,
        "ece": {name: part.error for name, part in parts.items()},
        "ece_by_chance": error_by_chance(probabilities, "equal_mass", bins),
        "bins": {name: _show_bins(part) for name, part in parts.items()},
        "accuracy_at": dict(zip(map(str, coverages), accuracies, strict=True)),
        "recall_at": {
            str(coverage): float(number / max(gold, 1))
            for coverage, number in zip(coverages, right, strict=True)
        },
    }


def _show_bins(part: Reliability) -> list[dict[str, Any]]:
    columns = (
        part.links.tolist(),
        (part.probabilities / part.links).tolist(),
        (part.correct / part.links).tolist(),
    )
    names = ("links", "probability", "accuracy")
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def _checked(probabilities: np.ndarray, correct: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    probabilities, correct = np.asarray(probabilities, np.float64), np.asarray(correct, bool)
    if probabilities.ndim != 1 or probabilities.shape != correct.shape:
        raise ElqError(
            f"probabilities, correct: shapes {probabilities.shape} and {correct.shape}; expected "
            "one entry of each for every link"
        )
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        wrong = probabilities[~((probabilities >= 0) & (probabilities <= 1))][0]
        raise ElqError(f"probabilities: found {wrong:g}; expected numbers from 0 to 1")
    return probabilities, correct
