"""Search over segments: what an exact search over the living rows finds, for any split."""

import numpy as np
import pytest

from elq_jax.core.errors import ElqError
from elq_jax.retrieval import segments
from elq_jax.retrieval.base import Index
from elq_jax.retrieval.exact import ExactIndex
from elq_jax.retrieval.scann import ScannIndex, ScannSettings
from elq_jax.retrieval.segments import SegmentedIndex


class Plain(Index):
    """Exact search in NumPy, which counts the rows that it is asked for."""

    has_files = False

    def __init__(self, vectors):
        super().__init__(vectors)
        self._vectors, self.asked = vectors, []

    @classmethod
    def build(cls, embeddings, settings=None, *, devices=None):
        return cls(embeddings)

    def nearest(self, queries, k):
        self.asked.append((len(queries), k))
        scores = queries @ self._vectors.T
        rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(scores, rows, axis=1), rows


def slowly(vectors, deleted, queries, k):
    """One row after the other: best first, and of equal scores the lower row."""
    results = []
    for query in queries:
        living = [(-float(query @ vectors[row]), row) for row in range(len(vectors))]
        results.append([pair for pair in sorted(living) if not deleted[pair[1]]][:k])
    scores = [[-score for score, _ in result] for result in results]
    return np.array(scores), np.array([[row for _, row in result] for result in results])


@pytest.mark.parametrize("seed", range(40))
def test_equal_to_a_search_over_the_living_rows(seed, monkeypatch):
    """Whole numbers, so that many scores are equal and all of them are exact."""
    monkeypatch.setattr(segments, "_TOGETHER", seed)
    random = np.random.default_rng(seed)
    rows, width = int(random.integers(1, 60)), 4
    vectors = random.integers(-3, 4, (rows, width)).astype(np.float32)
    queries = random.integers(-3, 4, (5, width)).astype(np.float32)
    deleted = random.random(rows) < random.choice([0.0, 0.1, 0.5, 0.95])
    deleted[random.integers(rows)] = False
    starts = np.sort(random.integers(1, rows + 1, random.integers(0, 4)))
    first, *others = np.split(vectors, starts)
    others = [part for part in others if len(part)]
    index = SegmentedIndex(Plain(first), others, deleted if deleted.any() else None)
    living = int((~deleted).sum())
    assert index.shape == vectors.shape
    for k in {1, min(3, living), living}:
        scores, found = index.search(queries, k)
        expected_scores, expected = slowly(vectors, deleted, queries, k)
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(scores, expected_scores)
    with pytest.raises(ElqError, match=f"k = {living + 1}: expected 1 <= k <= {living}"):
        index.search(queries, living + 1)


def test_the_best_rows_are_all_deleted():
    """Only queries that lack rows are searched for again, at most up to k + deleted rows."""
    vectors = np.eye(2, dtype=np.float32).repeat(50, axis=0) * np.arange(50, 150)[:, None]
    deleted = np.zeros(100, bool)
    deleted[[49, *range(80, 100)]] = True
    first = Plain(vectors)
    index = SegmentedIndex(first, [], deleted)
    _, rows = index.search(np.eye(2, dtype=np.float32), 2)
    np.testing.assert_array_equal(rows, [[48, 47], [79, 78]])
    counts = [count for count, _ in first.asked]
    assert counts == [2, *[1] * (len(counts) - 1)]
    assert max(k for _, k in first.asked) == 2 + 21
    assert index.search(np.zeros((0, 2), np.float32), 2)[0].shape == (0, 2)


def test_few_deletions_are_searched_for_as_none():
    """A program that is compiled for k is used as before, unless a deleted row is found."""
    vectors = np.arange(200, dtype=np.float32)[:, None]
    deleted = np.zeros(200, bool)
    deleted[0] = True
    first = Plain(vectors)
    SegmentedIndex(first, [vectors[:3]], deleted=np.append(deleted, [False] * 3)).search([[1.0]], 5)
    assert first.asked == [(1, 5)]


@pytest.mark.parametrize("num_living", [1800, 60, 10])
def test_enough_rows_by_scann(num_living):
    """Almost all rows may be deleted; more leaves of the tree are searched then."""
    pytest.importorskip("scann")
    random = np.random.default_rng(0)
    vectors, queries = (random.standard_normal((n, 16)).astype(np.float32) for n in (2000, 20))
    deleted = np.ones(2000, bool)
    deleted[random.choice(2000, num_living, replace=False)] = False
    first = ScannIndex.build(vectors, ScannSettings(method="tree_ah"))
    scores, rows = SegmentedIndex(first, [], deleted).search(queries, 10)
    assert np.isfinite(scores).all()
    assert not deleted[rows].any()
    assert all(len({*of_query}) == 10 for of_query in rows.tolist())


def test_with_compiled_search():
    random = np.random.default_rng(0)
    vectors = random.integers(-9, 9, (300, 8)).astype(np.float32)
    queries = random.integers(-9, 9, (4, 8)).astype(np.float32)
    deleted = random.random(300) < 0.1
    index = SegmentedIndex(ExactIndex(vectors[:250]), [vectors[250:]], deleted)
    index.least_k = 8
    assert index.first.least_k == index.least_k == 8
    scores, rows = index.search(queries, 5)
    expected_scores, expected = slowly(vectors, deleted, queries, 5)
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_array_equal(scores, expected_scores)
