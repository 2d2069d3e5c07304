"""Searches a catalogue of several segments, and leaves out deleted rows."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np

from elq_jax.core.errors import ElqError
from elq_jax.retrieval.base import Index, check_queries
from elq_jax.retrieval.exact import largest

_SCORES = 1 << 24  # inner products that are held at a time
_TOGETHER = 1 << 11  # rows of small segments that are compared together, and copied for it


class SegmentedIndex(Index):
    """Merges what the index of the first segment finds with an exact search over all others.

    An index cannot leave out deleted rows, so it is asked for more rows than are wanted, and again
    for twice as many where too few of them are left. Of the best k + d rows of a segment, of which
    d are deleted, at least k are not; so each search ends, with what a search over the other rows
    alone would find, if the index is exact.

    Args:
      first: index over the first segment.
      others: vectors of the other segments, float32 [n, D] each, in their order.
      deleted: [E] bool, whether a row is deleted; None: none is.

    Attributes:
      first: index over the first segment.
    """

    has_files = False

    def __init__(
        self, first: Index, others: Sequence[np.ndarray], deleted: np.ndarray | None = None
    ):
        rows, width = first.shape
        self.first, self.settings = first, first.settings
        others = _together(others)
        self._starts = np.cumsum([0, rows, *map(len, others)])
        self.shape = (int(self._starts[-1]), width)
        self._vectors = others
        masks = [None] * (1 + len(others))
        if deleted is not None:
            masks = np.split(deleted, self._starts[1:-1])
        self._masks = [mask if mask is not None and mask.any() else None for mask in masks]
        self.living = self.shape[0] - (0 if deleted is None else int(deleted.sum()))

    @classmethod
    def build(cls, embeddings: Any, settings: Any = None, *, devices: Any = None) -> NoReturn:
        """Refuses: it is made of the indexes of segments."""
        raise ElqError("an index of segments is made of theirs, not built")

    @property
    def name(self) -> str:
        """Returns the name of the index over the first segment."""
        return self.first.name

    @property
    def least_k(self) -> int:  # type: ignore[override]
        """Returns the smallest k that the index over the first segment searches for."""
        return self.first.least_k

    @least_k.setter
    def least_k(self, value: int) -> None:
        self.first.least_k = value

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the k entities with the highest inner product; see `Index.search`.

        Raises:
          ElqError: wrong width, NaN or infinity in a query, k above the number of living rows.
        """
        queries = check_queries(queries, k, (self.living, self.shape[1]))
        if not len(queries):
            return np.zeros((0, k), np.float32), np.zeros((0, k), np.int32)
        return self.nearest(queries, k)

    def nearest(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Finds the k best living rows; of equal scores the lower rows come first."""
        found = [_first_nearest(self.first, queries, k, self._masks[0])]
        for vectors, start, mask in zip(
            self._vectors, self._starts[1:].tolist(), self._masks[1:], strict=False
        ):
            scores, rows = _exactly(vectors, mask, queries, k)
            found.append((scores, rows + np.int32(start)))
        if len(found) == 1:
            return found[0]
        scores, rows = (np.concatenate(arrays, axis=1) for arrays in zip(*found, strict=True))
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)


def _together(parts: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Joins vectors [n, D] of neighbouring segments that are small, to compare all of them at once.

    The memory is copied.
    """
    joined: list[np.ndarray] = []
    for part in parts:
        if joined and len(joined[-1]) + len(part) <= _TOGETHER:
            joined[-1] = np.concatenate([joined[-1], part])
        else:
            joined.append(part)
    return joined


def _first_nearest(
    index: Index, queries: np.ndarray, k: int, mask: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Finds up to k living rows of an index that knows nothing of the deleted ones."""
    rows_in_all = index.shape[0]
    if mask is None:
        return index.search(queries, min(k, rows_in_all))
    num_deleted = int(mask.sum())
    k = min(k, rows_in_all - num_deleted)
    best_scores = np.full((len(queries), k), -np.inf, np.float32)
    best_rows = np.full((len(queries), k), -1, np.int32)
    if not k:
        return best_scores, best_rows
    missing = np.arange(len(queries))
    least = index.least_k if index.is_compiled else 1
    for count in _counts(k, num_deleted, rows_in_all, least):
        scores, rows = index.search(queries[missing], count)
        living = (rows >= 0) & ~mask[rows]
        enough = living.sum(axis=1) >= k
        # Living rows come first, in their order.
        order = np.argsort(~living[enough], axis=1, kind="stable")[:, :k]
        best_scores[missing[enough]] = np.take_along_axis(scores[enough], order, axis=1)
        best_rows[missing[enough]] = np.take_along_axis(rows[enough], order, axis=1)
        missing = missing[~enough]
        if not len(missing):
            break
    return best_scores, best_rows


def _counts(k: int, deleted: int, rows: int, least: int) -> list[int]:
    """Lists for how many rows to ask: k times powers of two, up to k + `deleted`.

    The first is k, unless so many rows are deleted that they would be among most results. Few
    different numbers are asked for, since an index may be compiled for each: the multiples are of
    `least`, for which it searches anyway, if that is more than k.
    """
    most, first = k + deleted, max(k, least)
    powers = itertools.takewhile(lambda count: count < most, (first << i for i in range(32)))
    counts = [*powers, most]
    expected = k / (1 - deleted / rows)
    if expected > 1.02 * k:
        counts = [count for count in counts if count > 1.2 * expected] or [most]
    return counts


def _exactly(
    vectors: np.ndarray, mask: np.ndarray | None, queries: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Finds up to k living rows of vectors [n, D] by comparing all of them."""
    living = len(vectors) - (0 if mask is None else int(mask.sum()))
    k = min(k, living)
    best_scores = np.empty((len(queries), k), np.float32)
    best_rows = np.empty((len(queries), k), np.int32)
    step = max(1, _SCORES // len(vectors))
    for start in range(0, len(queries) if k else 0, step):
        scores = queries[start : start + step] @ vectors.T
        if mask is not None:
            scores[:, mask] = -np.inf
        for place, own in enumerate(scores, start):
            best_scores[place], best_rows[place] = largest(own, k)
    return best_scores, best_rows
