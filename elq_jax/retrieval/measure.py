"""Recall of an index against exact search, and its speed."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from elq_jax.entities.embeddings import Embeddings
    from elq_jax.retrieval import Index


def perturbed_rows(embeddings: Embeddings, count: int, noise: float, seed: int) -> np.ndarray:
    """Draws entity vectors and adds noise, for want of the vectors of real mentions.

    Args:
      embeddings: [E, D].
      count: Q.
      noise: length of the normal noise added to a vector, relative to the vector's own.
      seed: of the choice and of the noise.

    Returns:
      [Q, D] float32.
    """
    generator = np.random.default_rng(seed)
    vectors = embeddings.rows(generator.integers(0, len(embeddings), count))
    added = generator.standard_normal(vectors.shape, dtype=np.float32)
    lengths = np.linalg.norm(vectors, axis=1) / np.linalg.norm(added, axis=1)
    return vectors + added * (noise * lengths)[:, None]


def recall(found: np.ndarray, exact: np.ndarray, k: int) -> float:
    """Returns the share of the exact k nearest rows that are among the first k found.

    Args:
      found: [Q, >= k] int, rows of an approximate search.
      exact: [Q, >= k] int, rows of exact search.
      k: how many count.
    """
    pairs = zip(found[:, :k], exact[:, :k], strict=True)
    return float(np.mean([len(np.intersect1d(*pair)) / k for pair in pairs]))


def queries_per_second(
    index: Index, queries: np.ndarray, batch_size: int, k: int = 10, seconds: float = 3.0
) -> float:
    """Searches batch after batch until the time is over; the first search is not counted.

    Args:
      index: what is measured.
      queries: [Q, D], at least `batch_size`; taken in order, again and again.
      batch_size: queries per search.
      k: entities found for each.
      seconds: how long to measure.
    """
    batches = [
        queries[start : start + batch_size]
        for start in range(0, len(queries) - batch_size + 1, batch_size)
    ]
    index.search(batches[0], k)
    count, started = 0, time.perf_counter()
    while count == 0 or time.perf_counter() - started < seconds:
        index.search(batches[count % len(batches)], k)
        count += 1
    return count * batch_size / (time.perf_counter() - started)
