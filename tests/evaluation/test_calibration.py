"""Calibration against slow loops over links."""

import math

import numpy as np
import pytest

from elq_jax.core.errors import ElqError
from elq_jax.evaluation.calibration import (
    calibration_report,
    coverage_curve,
    error_by_chance,
    reliability,
)


def random_links(seed, size):
    """Probabilities with ties, some at the borders of bins; right about as often as they say."""
    rng = np.random.default_rng(seed)
    probabilities = np.where(
        rng.random(size) < 0.5, rng.integers(0, 11, size) / 10, rng.random(size)
    )
    return probabilities, rng.random(size) < probabilities


def slow_error(groups):
    total = sum(map(len, groups))
    error = 0.0
    for group in filter(None, groups):
        mean = math.fsum(p for p, _ in group) / len(group)
        accuracy = sum(right for _, right in group) / len(group)
        error += len(group) / total * abs(mean - accuracy)
    return error


def slow_fixed(probabilities, correct, bins):
    groups = [[] for _ in range(bins)]
    for p, right in zip(probabilities, correct, strict=True):
        number = max(b for b in range(bins) if p * bins >= b)
        groups[number].append((p, bool(right)))
    return groups


def slow_equal_mass(probabilities, correct, bins):
    groups = [[] for _ in range(bins)]
    for p, right in zip(probabilities, correct, strict=True):
        below = sum(other < p for other in probabilities)
        number = max(b for b in range(bins) if below >= b * len(probabilities) / bins)
        groups[number].append((p, bool(right)))
    return groups


@pytest.mark.parametrize("binning", ["fixed", "equal_mass"])
def test_reliability_equals_a_slow_loop(binning):
    slow = slow_fixed if binning == "fixed" else slow_equal_mass
    for seed, size in enumerate((1, 2, 7, 40, 40, 150)):
        probabilities, correct = random_links(seed, size)
        for bins in (1, 2, 5, 15):
            groups = slow(probabilities, correct, bins)
            found = reliability(probabilities, correct, binning, bins)
            filled = [group for group in groups if group]
            assert found.links.tolist() == [*map(len, filled)]
            assert found.correct.tolist() == [sum(right for _, right in g) for g in filled]
            sums = [math.fsum(p for p, _ in group) for group in filled]
            np.testing.assert_allclose(found.probabilities, sums, rtol=1e-12)
            assert found.error == pytest.approx(slow_error(groups), abs=1e-12)
            order = np.random.default_rng(seed).permutation(size)
            again = reliability(probabilities[order], correct[order], binning, bins)
            assert again.error == pytest.approx(found.error, abs=1e-12)


@pytest.mark.parametrize("binning", ["fixed", "equal_mass"])
def test_error_by_chance_is_the_mean_over_drawn_links(binning, monkeypatch):
    rng = np.random.default_rng(1)
    for size in (2, 30, 150):
        probabilities, _ = random_links(size, size)
        errors = [
            reliability(probabilities, rng.random(size) < probabilities, binning, 5).error
            for _ in range(4000)
        ]
        exact = error_by_chance(probabilities, binning, 5)
        assert exact == pytest.approx(np.mean(errors), abs=4 * np.std(errors) / 4000**0.5)
    assert error_by_chance(np.zeros(0), binning) == 0.0
    monkeypatch.setattr("elq_jax.evaluation.calibration._EXACT", 20)
    assert error_by_chance(probabilities, binning, 5) == pytest.approx(exact, rel=0.05)


def test_bins_of_equal_mass_are_equal():
    probabilities = np.random.default_rng(0).random(60)
    assert reliability(probabilities, probabilities > 0.5).links.tolist() == [4] * 15


def test_coverage_equals_keeping_link_by_link():
    for seed in range(6):
        probabilities, correct = random_links(seed, 30)
        curve = coverage_curve(probabilities, correct)
        assert curve.thresholds.tolist() == sorted(set(probabilities.tolist()), reverse=True)
        for threshold, kept, right in zip(curve.thresholds, curve.kept, curve.correct, strict=True):
            assert kept == sum(p >= threshold for p in probabilities)
            assert right == sum(
                c for p, c in zip(probabilities, correct, strict=True) if p >= threshold
            )
        for coverage in (0.1, 0.5, 1.0):
            kept = max(
                t for t in probabilities if sum(p >= t for p in probabilities) >= coverage * 30
            )
            wanted = correct[probabilities >= kept].mean()
            assert curve.accuracy_at(coverage) == pytest.approx(wanted)


def test_examples():
    found = reliability(np.array([0.1, 0.2, 0.8, 0.9]), np.array([0, 0, 1, 1]), bins=2)
    assert (found.links.tolist(), found.correct.tolist()) == ([2, 2], [0, 2])
    assert found.error == pytest.approx(0.15)
    curve = coverage_curve(np.array([0.9, 0.9, 0.2]), np.array([1, 0, 1]))
    assert (curve.thresholds.tolist(), curve.kept.tolist()) == ([0.9, 0.2], [2, 3])
    assert curve.correct.tolist() == [1, 2]


def test_report():
    probabilities, correct = random_links(3, 40)
    report = calibration_report(probabilities, correct, gold=50)
    assert (report["links"], report["gold"]) == (40, 50)
    assert report["accuracy"] == pytest.approx(correct.mean())
    assert report["accuracy_at"]["1.0"] == pytest.approx(correct.mean())
    assert report["recall_at"]["1.0"] == pytest.approx(correct.sum() / 50)
    for name, bins in report["bins"].items():
        assert sum(b["links"] for b in bins) == 40
        error = sum(b["links"] * abs(b["probability"] - b["accuracy"]) for b in bins) / 40
        assert report["ece"][name] == pytest.approx(error)


def test_no_links():
    empty = np.zeros(0)
    report = calibration_report(empty, empty, gold=3)
    assert report["accuracy"] is report["accuracy_at"]["0.5"] is None
    assert report["ece"] == {"equal_mass": 0.0, "fixed": 0.0}
    assert report["recall_at"]["0.5"] == 0.0


@pytest.mark.parametrize(
    ("probabilities", "correct", "message"),
    [
        ([0.5, 1.2], [1, 0], "found 1.2; expected numbers from 0 to 1"),
        ([np.nan], [1], "found nan"),
        ([0.5], [1, 0], r"shapes \(1,\) and \(2,\)"),
    ],
)
def test_arrays_that_cannot_be_used(probabilities, correct, message):
    for function in (reliability, coverage_curve):
        with pytest.raises(ElqError, match=message):
            function(np.array(probabilities), np.array(correct))
