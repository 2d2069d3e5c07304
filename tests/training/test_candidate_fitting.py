"""Fitting candidate scoring: against another optimiser, finite differences and a loop."""

import numpy as np
import pytest
import scipy.optimize

from elq_jax.questions.held_out import QuestionPart, is_held_out
from elq_jax.questions.records import Question
from elq_jax.training.candidates import PENALTY, fit_conditional_logit, penalised_loss


def synthetic(mentions, weights, seed=0):
    """Candidates whose gold is drawn from the softmax of known weights."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 8, mentions)
    owners = np.repeat(np.arange(mentions), counts)
    features = rng.normal(0, 1.5, (len(owners), len(weights)))
    features[:, -1] = features[:, -1] > 0
    is_gold = np.zeros(len(owners), bool)
    for mention in range(mentions):
        own = np.flatnonzero(owners == mention)
        p = np.exp(features[own] @ weights)
        is_gold[rng.choice(own, p=p / p.sum())] = True
    return features, owners, is_gold, rng.uniform(0.5, 2, mentions)


def slow_loss(weights, features, owners, is_gold, importance):
    """The loss, one mention at a time."""
    loss = PENALTY / 2 * float(np.sum(weights**2))
    for mention in range(len(importance)):
        own = owners == mention
        scores = features[own] @ weights
        loss -= importance[mention] * float(
            scores[is_gold[own]][0] - np.log(np.sum(np.exp(scores)))
        )
    return loss


def test_loss_and_gradient_are_those_of_a_loop_and_of_differences():
    data = synthetic(25, np.array([0.5, -1.0, 0.3]))
    weights = np.array([0.3, 0.1, -0.7])
    loss, gradient = penalised_loss(weights, *data)
    assert loss == pytest.approx(slow_loss(weights, *data), rel=1e-10)
    for i, step in enumerate(1e-5 * np.eye(3)):
        difference = slow_loss(weights + step, *data) - slow_loss(weights - step, *data)
        assert gradient[i] == pytest.approx(difference / 2e-5, rel=1e-6)


def test_weights_are_recovered_and_agree_with_another_optimiser():
    truth = np.array([1.0, -0.5, 2.0])
    features, owners, is_gold, importance = synthetic(3000, truth)
    found = fit_conditional_logit(features, owners, is_gold, importance)
    np.testing.assert_allclose(found, truth, atol=0.15)
    np.testing.assert_array_equal(
        found, fit_conditional_logit(features, owners, is_gold, importance)
    )
    small = synthetic(60, truth, seed=1)
    spread = small[0].std(axis=0)
    other = scipy.optimize.minimize(
        slow_loss, np.zeros(3), (small[0] / spread, *small[1:]), method="Nelder-Mead", tol=1e-9
    )
    np.testing.assert_allclose(fit_conditional_logit(*small), other.x / spread, atol=1e-4)


def test_a_feature_that_is_the_same_everywhere_gets_no_weight():
    features, *rest = synthetic(100, np.array([1.0, -0.5]))
    features = np.column_stack([features, np.ones(len(features))])
    weights = fit_conditional_logit(features, *rest)
    assert weights[2] == 0
    np.testing.assert_array_equal(weights[:2] != 0, [True, True])


class Source(list):
    fingerprint = "questions/train"


def test_questions_are_held_out_by_their_texts():
    texts = [f"who is number {number}?" for number in range(2000)]
    held_out = [is_held_out(text, 0.1) for text in texts]
    assert 150 < sum(held_out) < 250
    assert all(is_held_out(t, 0.3) for t, own in zip(texts, held_out, strict=True) if own)
    assert not any(is_held_out(text, 0.0) for text in texts)
    source = Source(Question(str(i), text, ()) for i, text in enumerate(texts + texts[:50]))
    parts = [QuestionPart(source, 0.1, own) for own in (True, False)]
    assert sorted(q.id for part in parts for q in part) == sorted(q.id for q in source)
    assert not {q.text for q in parts[0]} & {q.text for q in parts[1]}
    assert [q.id for q in parts[0]] == sorted((q.id for q in parts[0]), key=int)
    assert len({part.fingerprint for part in parts} | {source.fingerprint}) == 3
    # Nothing is held out if nothing else would be left.
    own = Source(q for q in source if is_held_out(q.text, 0.1))
    assert [len(QuestionPart(own, 0.1, which)) for which in (True, False)] == [0, len(own)]
