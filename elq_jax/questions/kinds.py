"""Finds entities of the same kind in the space of the entity vectors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from elq_jax.entities.embeddings import Embeddings

_SCALE = 4000.0
_SAME = 0.99  # Cosine above which a row is an example itself, encoded in bfloat16 or float32.
_ROWS_AT_ONCE = 8192
_LOW = np.iinfo(np.int64).min


def whole_vectors(vectors: np.ndarray) -> np.ndarray:
    """Rounds vectors, scaled to one length, to whole numbers.

    Their inner products, and all sums on the way to these, are whole numbers below 2^24, which
    float32 adds without rounding: they are the same in any order of the sums, so on any machine.

    Args:
      vectors: [n, D] float32, finite; D below 30,000.

    Returns:
      [n, D] float32, whole numbers; zero vectors stay.
    """
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    return np.rint(vectors * (_SCALE / np.where(lengths > 0, lengths, 1))).astype(np.float32)


def nearest_rows(embeddings: Embeddings, queries: np.ndarray, count: int) -> np.ndarray:
    """Finds the rows whose vectors have the highest cosines with queries; exactly, in one pass.

    Equal cosines (of `whole_vectors`) are ordered by row. The result depends on no other query and
    on no machine.

    Args:
      embeddings: [E, D] vectors of entities.
      queries: [Q, D] float32.
      count: N, number of rows for each query, at most E.

    Returns:
      [Q, N] int64, the nearest first.
    """
    queries = whole_vectors(queries)
    # A cosine and a row in one number, so that the largest numbers are the nearest rows.
    best = np.full((len(queries), count), _LOW)
    for shard in embeddings.shards:
        for start in range(0, len(shard.values), _ROWS_AT_ONCE):
            part = slice(start, min(start + _ROWS_AT_ONCE, len(shard.values)))
            scores = queries @ whole_vectors(shard.float32(part)).T
            # Among equal cosines the earlier rows, which are known already, win.
            is_better = scores > (best[:, 0] >> 32)[:, None]
            for query in np.flatnonzero(is_better.any(axis=1)):
                places = np.flatnonzero(is_better[query])
                keys = (scores[query, places].astype(np.int64) << 32) | (
                    2**32 - 1 - (shard.start + start + places)
                )
                keys = np.concatenate([best[query], keys])
                keys.partition(len(keys) - count)
                best[query] = keys[-count:]  # the smallest of them first
    best.sort(axis=1)
    return 2**32 - 1 - (best[:, ::-1] & (2**32 - 1))


def nearest_queries(embeddings: Embeddings, queries: np.ndarray) -> np.ndarray:
    """Finds for each row the query with the highest cosine, the first of equals: [E] int64."""
    queries = whole_vectors(queries)
    nearest = np.zeros(len(embeddings), np.int64)
    for shard in embeddings.shards if len(queries) else ():
        for start in range(0, len(shard.values), _ROWS_AT_ONCE):
            part = slice(start, min(start + _ROWS_AT_ONCE, len(shard.values)))
            scores = whole_vectors(shard.float32(part)) @ queries.T
            nearest[shard.start + part.start : shard.start + part.stop] = scores.argmax(axis=1)
    return nearest


def kinds_of_rows(
    embeddings: Embeddings, examples: np.ndarray, kinds: Sequence[str | None]
) -> np.ndarray:
    """Finds for each row the kind of the nearest example, and the kind with the nearest mean.

    The two together are right more often than either alone: among few examples, the nearest one is
    often near for its name only (an Anna to another Anna), which the mean over a kind evens out.
    An example that is in the catalogue itself is of its own kind, wherever the means are.

    Args:
      embeddings: [E, D] vectors of entities.
      examples: [P, D] float32 vectors of entities whose kinds are known.
      kinds: kinds of the P examples; None where unknown.

    Returns:
      [E, 2] kinds, objects: of the nearest example (None where that is unknown) and of the nearest
      mean. All None if no kind is known.
    """
    result = np.full((len(embeddings), 2), None)
    labels = sorted({kind for kind in kinds if kind is not None})
    if len(examples) and labels:
        known = np.array(kinds, object)
        result[:, 0] = known[nearest_queries(embeddings, examples)]
        whole = whole_vectors(examples)
        means = np.stack([whole[known == label].mean(axis=0) for label in labels])
        result[:, 1] = np.array(labels, object)[nearest_queries(embeddings, means)]
        rows = nearest_rows(embeddings, examples, 1)[:, 0]
        cosines = (whole_vectors(embeddings.rows(rows)) * whole).sum(axis=1) / _SCALE**2
        result[rows[cosines > _SAME], 1] = result[rows[cosines > _SAME], 0]
    return result
