"""What exact search and tables are compared with: a stable sort of all scores in NumPy."""

import numpy as np


def integers(*shape, seed=0, high=3):
    """Small whole numbers: every product is exact, and equal scores are common."""
    return np.random.default_rng(seed).integers(-high, high + 1, shape).astype(np.float32)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def slow_search(queries, table, k):
    scores = queries.astype(np.float64) @ table.astype(np.float64).T
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, rows, axis=1), rows


def assert_found(found, queries, table, k):
    scores, rows = slow_search(queries, table, k)
    np.testing.assert_array_equal(found[1], rows)
    np.testing.assert_allclose(found[0], scores, rtol=1e-5, atol=1e-5)
