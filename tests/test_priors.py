"""Candidate scoring with counts of links, on features whose best weights are known."""

import numpy as np

from benchmarks import priors
from elq_jax.linking.candidates import FEATURES, Candidates

COUNT = 200
WIDTH = len(FEATURES) + len(priors.PRIORS)


FOLD = np.arange(COUNT) % 4 // 2


def mentions_with(column, agrees):
    """Makes mentions with two candidates, and whether a feature prefers the right one, [n]."""
    rng = np.random.default_rng(0)
    rows = np.stack([np.full(COUNT, 7), np.full(COUNT, 9)], axis=1).ravel()
    gold = rng.choice([7, 9], COUNT)
    features = np.zeros((2 * COUNT, WIDTH))
    preferred = np.where(agrees, gold, 16 - gold)
    features[:, column] = rows == np.repeat(preferred, 2)
    mentions = np.repeat(np.arange(COUNT), 2)
    candidates = Candidates(mentions, rows, np.zeros(2 * COUNT), features)
    return priors.AtGold(candidates, gold, FOLD, np.ones(COUNT, bool))


def so_often(share):
    return np.arange(COUNT) % 10 < 10 * share


def test_weights_are_fitted_on_the_other_half():
    """A feature that is right in one half and wrong in the other misleads in both."""
    own = mentions_with(0, FOLD == 0)
    assert not priors.are_right({"a": own}, [0])["a"].any()


def test_weights_are_fitted_on_all_sets_together():
    popularity = len(FEATURES)
    agrees = so_often(0.8)
    own = mentions_with(popularity, agrees)
    right = priors.are_right({"a": own}, [0, popularity])["a"]
    np.testing.assert_array_equal(right, agrees)
    other = mentions_with(popularity, so_often(0.1))  # It outweighs the first.
    right = priors.are_right({"a": own, "b": other}, [0, popularity])["a"]
    np.testing.assert_array_equal(right, ~agrees)


def test_a_feature_that_is_left_out_decides_nothing():
    own = mentions_with(len(FEATURES), so_often(1))
    right = priors.are_right({"a": own}, [*range(len(FEATURES))])["a"]
    np.testing.assert_array_equal(right, own.rows == 7)  # Of equal candidates, the first.
    mended = priors.are_right({"a": own}, [*range(WIDTH)])["a"]
    assert mended.all()


def test_mentions_outside_the_catalogue_or_without_candidates_are_never_right():
    own = mentions_with(0, so_often(1))
    own.rows[:4] = -1, 3, -1, 3
    assert not priors.are_right({"a": own}, [0])["a"][:4].any()
