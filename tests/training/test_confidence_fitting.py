"""Fitting probabilities of links: against Newton's method, differences, and loops."""

import numpy as np
import pytest

from elq_jax.linking.confidence import BIAS, FEATURES
from elq_jax.linking.links import ScoredSpans
from elq_jax.training.confidence import (
    PENALTY,
    best_probability,
    fit_logistic,
    label_spans,
    logistic_loss,
)

F = len(FEATURES)


def synthetic(count, seed=0):
    """Labels that are drawn from a logistic regression of known weights."""
    rng = np.random.default_rng(seed)
    features = rng.normal(0, 1, (count, F)) * rng.uniform(0.5, 3, F) + rng.normal(0, 2, F)
    truth = rng.normal(0, 0.5, F)
    bias = -features.mean(axis=0) @ truth
    labels = rng.random(count) < 1 / (1 + np.exp(-(features @ truth + bias)))
    return features, labels, rng.uniform(0.5, 2, count), np.append(truth, bias)


def newton(features, labels, importance):
    """The same maximum by iteratively reweighted least squares."""
    means, spread = features.mean(axis=0), features.std(axis=0)
    x = np.column_stack([(features - means) / spread, np.ones(len(features))])
    penalty = PENALTY * np.diag(np.append(np.ones(features.shape[1]), 0.0))
    w = np.zeros(x.shape[1])
    for _ in range(50):
        p = 1 / (1 + np.exp(-(x @ w)))
        gradient = x.T @ (importance * (p - labels)) + penalty @ w
        hessian = (x * (importance * p * (1 - p))[:, None]).T @ x + penalty
        w -= np.linalg.solve(hessian, gradient)
    return np.append(w[:-1] / spread, w[-1] - w[:-1] / spread @ means)


def vector(weights):
    return np.array([weights[name] for name in (*FEATURES, BIAS)])


def test_the_fit_is_that_of_newtons_method():
    *data, _ = synthetic(300, seed=1)
    found = vector(fit_logistic(*data))
    np.testing.assert_allclose(found, newton(*data), atol=2e-4)
    np.testing.assert_array_equal(found, vector(fit_logistic(*data)))
    *data, truth = synthetic(20000)
    found = vector(fit_logistic(*data))
    np.testing.assert_allclose(found[:-1], truth[:-1], atol=0.12)
    features, labels, importance = data
    p = 1 / (1 + np.exp(-(features @ found[:-1] + found[-1])))
    assert importance @ p == pytest.approx(importance @ labels, rel=1e-4)  # calibrated


def test_the_gradient_is_that_of_differences():
    features, labels, importance, _ = synthetic(40)
    arguments = features, np.where(labels, 1.0, -1.0), importance
    weights = np.random.default_rng(3).normal(0, 0.2, F + 1)
    loss, gradient = logistic_loss(weights, *arguments)
    slow = PENALTY / 2 * np.sum(weights[:-1] ** 2)
    for x, label, factor in zip(features, labels, importance, strict=True):
        p = 1 / (1 + np.exp(-(x @ weights[:-1] + weights[-1])))
        slow -= factor * np.log(p if label else 1 - p)
    assert loss == pytest.approx(slow, rel=1e-9)
    for i, step in enumerate(1e-6 * np.eye(F + 1)):
        ends = (logistic_loss(weights + sign * step, *arguments)[0] for sign in (1, -1))
        assert gradient[i] == pytest.approx(np.subtract(*ends) / 2e-6, rel=1e-4, abs=1e-4)


def test_features_and_labels_that_are_the_same_everywhere():
    features, labels, importance, _ = synthetic(100)
    features[:, 3] = 7.0
    assert fit_logistic(features, labels, importance)[list(FEATURES)[3]] == 0
    weights = fit_logistic(features, np.ones(100, bool), np.ones(100))
    assert weights == dict.fromkeys(FEATURES, 0.0) | {BIAS: pytest.approx(np.log(101))}


@pytest.mark.parametrize("seed", range(3))
def test_labels_are_those_of_a_loop(seed):
    rng = np.random.default_rng(seed)
    question = np.sort(rng.integers(0, 5, 40)).astype(np.int32)
    start = rng.integers(1, 6, 40)
    bounds = np.stack([start, start + rng.integers(0, 3, 40)], 1)
    rows = rng.integers(0, 3, (40, 2)).astype(np.int32)
    spans = ScoredSpans(
        [""] * 5, [], question, question, bounds, np.zeros(40), rows * 1.0, rows, -8.0
    )
    gold_question = np.sort(rng.integers(0, 4, 9))
    gold_start = rng.integers(1, 6, 9)
    gold = np.stack([gold_start, gold_start + rng.integers(0, 2, 9)], 1)
    gold_rows = rng.integers(-1, 3, 9)
    found = label_spans(spans, gold_question, gold, gold_rows)
    expected = np.zeros((3, 40), bool)
    for i in range(40):
        for j in np.flatnonzero(gold_question == question[i]):
            same = bounds[i].tolist() == gold[j].tolist()
            tokens = (set(range(a, b + 1)) for a, b in (bounds[i], gold[j]))
            expected[0, i] |= same
            expected[1, i] |= gold_rows[j] == rows[i, 0] and bool(set.intersection(*tokens))
            expected[2, i] |= same and gold_rows[j] < 0
    assert expected.any(axis=1).all()
    np.testing.assert_array_equal(found, expected)
    nothing = label_spans(spans, gold_question[:0], gold[:0], gold_rows[:0])
    assert not np.any(nothing)


def test_the_best_probability_is_that_of_all_cuts():
    rng = np.random.default_rng(0)
    scores, importance = rng.normal(0, 2, 30), rng.uniform(0.5, 2, 30)
    correct = rng.random(30) < 1 / (1 + np.exp(-scores))
    total = importance @ correct + 3

    def f1(threshold):
        chosen = 1 / (1 + np.exp(-scores)) > threshold
        return 2 * importance @ (chosen & correct) / (importance @ chosen + total)

    best = best_probability(scores, correct, importance, total)
    assert f1(best) == pytest.approx(max(map(f1, np.linspace(0, 1, 2001))))
