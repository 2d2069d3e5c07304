"""Candidate scoring with counts of links, on features whose best weights are known."""

import numpy as np

from benchmarks import priors
from elq_jax.linking.candidates import FEATURES, Candidates

COUNT = 200
WIDTH = len(FEATURES) + len(priors.PRIORS)


def mentions_with(column, agreement):
    """Makes mentions with two candidates, of which a feature prefers the right one so often."""
    rng = np.random.default_rng(0)
    rows = np.stack([np.full(COUNT, 7), np.full(COUNT, 9)], axis=1).ravel()
    gold = rng.choice([7, 9], COUNT)
    features = np.zeros((2 * COUNT, WIDTH))
    agrees = np.arange(COUNT) % 10 < 10 * agreement
    preferred = np.where(agrees, gold, 16 - gold)
    features[:, column] = rows == np.repeat(preferred, 2)
    mentions = np.repeat(np.arange(COUNT), 2)
    candidates = Candidates(mentions, rows, np.zeros(2 * COUNT), features)
    return priors.AtGold(candidates, gold, np.arange(COUNT) % 4 // 2, np.ones(COUNT, bool)), agrees


def test_weights_are_fitted_on_the_other_half():
    popularity = len(FEATURES)
    own, agrees = mentions_with(popularity, 0.8)
    right = priors.are_right({"a": own}, [0, popularity])["a"]
    np.testing.assert_array_equal(right, agrees)
    other, _ = mentions_with(popularity, 0.1)  # Its half outweighs that of the first.
    right = priors.are_right({"a": own, "b": other}, [0, popularity])["a"]
    np.testing.assert_array_equal(right, ~agrees)


def test_a_feature_that_is_left_out_decides_nothing():
    own, _ = mentions_with(len(FEATURES), 1.0)
    right = priors.are_right({"a": own}, [*range(len(FEATURES))])["a"]
    np.testing.assert_array_equal(right, own.rows == 7)  # Of equal candidates, the first.
    mended = priors.are_right({"a": own}, [*range(WIDTH)])["a"]
    assert mended.all()


def test_mentions_outside_the_catalogue_or_without_candidates_are_never_right():
    own, _ = mentions_with(0, 1.0)
    own.rows[:4] = -1, 3, -1, 3
    assert not priors.are_right({"a": own}, [0])["a"][:4].any()
