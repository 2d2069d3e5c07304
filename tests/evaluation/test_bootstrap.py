"""Bootstrap of means and of paired differences, against formulas and drawing one by one."""

import numpy as np
import pytest
from scipy import stats

from elq_jax.core.errors import ElqError
from elq_jax.evaluation.bootstrap import f1_intervals, f1_of, paired_differences, resampled_sums


def random_table(rng, questions, quality=0.7):
    """Counts of questions with up to three gold mentions."""
    gold = rng.integers(0, 4, questions)
    predicted = rng.integers(0, 4, questions)
    weak = rng.binomial(np.minimum(gold, predicted), quality)
    return np.stack([weak, rng.binomial(weak, 0.9), predicted, gold], axis=1)


def slow_f1(table, place):
    total = table[:, 2].sum() + table[:, 3].sum()
    return 2 * table[:, place].sum() / total if total else 0.0


def test_f1():
    rng = np.random.default_rng(0)
    tables = rng.integers(0, 3, (6, 5, 4))
    tables[0] = 0
    wanted = [[slow_f1(table, place) for place in (0, 1)] for table in tables]
    np.testing.assert_allclose(f1_of(tables.sum(axis=1)), wanted)


def test_sums_are_those_of_as_many_questions_of_the_same_set():
    """Each question marks itself in its own digit, so the sum says which ones were drawn."""
    tables = [np.array([[10**i, 1] for i in range(size)]) for size in (3, 5)]
    sums = resampled_sums(tables, 200, seed=0)
    for of_set, size in zip(sums, (3, 5), strict=True):
        assert (of_set[:, 1] == size).all()
        digits = of_set[:, :1] // 10 ** np.arange(size) % 10
        assert (digits.sum(axis=1) == size).all()
        # A question is drawn as often as the others, to six standard errors.
        share = digits.mean(axis=0)
        assert np.abs(share - 1).max() < 6 * np.sqrt((size - 1) / size / 200)
    assert not (sums[0, :, 0] == sums[1, :, 0] % 1000).all()
    assert resampled_sums([np.zeros((0, 4), int)], 3, 0).tolist() == [[[0] * 4] * 3]


def test_interval_of_the_mean_over_sets_equals_drawing_one_by_one():
    rng = np.random.default_rng(1)
    tables = [random_table(rng, size) for size in (150, 40, 90)]
    means = [
        [
            np.mean(
                [slow_f1(table[rng.integers(0, len(table), len(table))], p) for table in tables]
            )
            for p in (0, 1)
        ]
        for _ in range(4000)
    ]
    found = f1_intervals(tables)
    for place, metric in enumerate(("weak", "strong")):
        wanted = np.quantile(np.array(means)[:, place], [0.025, 0.975])
        np.testing.assert_allclose(found[metric], wanted, rtol=0, atol=0.004)


def test_paired_difference_equals_drawing_one_by_one():
    """The other run differs in a few questions, so pairing makes the interval much narrower."""
    rng = np.random.default_rng(2)
    tables = [random_table(rng, size) for size in (150, 60)]
    others = [table.copy() for table in tables]
    for table in others:
        table[::20, :2] = 0
    drawn = []
    for _ in range(4000):
        draws = [rng.integers(0, len(table), len(table)) for table in tables]
        f1 = [
            [slow_f1(table[rows], 0) for table, rows in zip(side, draws, strict=True)]
            for side in (tables, others)
        ]
        drawn.append(np.mean(f1[0]) - np.mean(f1[1]))
    found = paired_differences(tables, others)["weak"]
    assert found.f1 == pytest.approx(np.mean([slow_f1(table, 0) for table in tables]))
    assert found.difference == pytest.approx(found.f1 - np.mean([slow_f1(t, 0) for t in others]))
    np.testing.assert_allclose(found.interval, np.quantile(drawn, [0.025, 0.975]), atol=0.004)
    assert found.p_value == pytest.approx(2 * np.mean(np.array(drawn) <= 0), abs=0.004)
    low, high = f1_intervals(tables)["weak"]
    assert found.interval[1] - found.interval[0] < 0.7 * (high - low)
    reverse = paired_differences(others, tables)["weak"]
    np.testing.assert_allclose(reverse.interval, np.negative(found.interval[::-1]))
    assert reverse.p_value == found.p_value


def test_p_value_is_near_that_of_the_sign_test():
    """One gold mention and prediction a question: the difference is of discordant pairs alone."""
    n, better, worse = 300, 30, 16
    right = np.arange(n) < 200
    other = right.copy()
    other[:better], other[n - worse :] = False, True
    tables = [
        np.stack([mask, mask, np.ones(n), np.ones(n)], axis=1).astype(int)
        for mask in (right, other)
    ]
    found = paired_differences(tables[:1], tables[1:])["strong"]
    assert found.difference == pytest.approx((better - worse) / n)
    variance = (better + worse) - (better - worse) ** 2 / n
    normal = 2 * stats.norm.sf((better - worse) / np.sqrt(variance))
    assert found.p_value == pytest.approx(normal, abs=0.02)
    same = paired_differences(tables[:1], tables[:1])["weak"]
    assert (same.difference, same.interval, same.p_value) == (0.0, (0.0, 0.0), 1.0)


def test_other_numbers_of_questions_are_refused():
    tables = [np.zeros((3, 4), int)]
    with pytest.raises(ElqError, match=r"\[3\] and \[2\] questions; expected the same"):
        paired_differences(tables, [np.zeros((2, 4), int)])
