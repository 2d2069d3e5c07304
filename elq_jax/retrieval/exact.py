"""Exact maximum inner product search on one device, over memory-mapped shards on CPU."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from elq_jax.core.errors import ElqError
from elq_jax.entities.embeddings import DTYPES, Embeddings, Shard, checked_shards
from elq_jax.retrieval.base import INDEXES, Index, NoSettings
from elq_jax.retrieval.table import CHUNK_SIZE, Table, best

QUERY_BUCKETS = (1, 4, 16, 64, 256)
_PART_BYTES = 1 << 30  # Shards are joined up to this size on accelerators.


@functools.partial(jax.jit, static_argnames=("k", "chunk_size"))
def _search_shard(
    queries: jax.Array, shard: Shard, k: int, chunk_size: int
) -> tuple[jax.Array, jax.Array]:
    total = len(shard.values)
    table = Table(shard.values, shard.scale, total, axis_name=None)
    scores, rows = table.nearest(queries, min(k, total), chunk_size, approximate=False)
    return scores, rows + shard.start


@functools.partial(jax.jit, static_argnames="k")
def _merge(results: list[tuple[jax.Array, jax.Array]], k: int) -> tuple[jax.Array, jax.Array]:
    scores, rows = (jnp.concatenate(parts, axis=1) for parts in zip(*results, strict=True))
    return best(k, scores, rows)


@INDEXES.register("exact")
class ExactIndex(Index):
    """Exact search over embeddings held by the device.

    On CPU, memory-mapped shards are searched where they are: opening copies nothing and costs one
    pass over the file. On accelerators the table is copied to the device's memory.

    Args:
      embeddings: opened `Embeddings`, or an array [E, D] of floats, which is not always copied on
        CPU: do not change it afterwards.
      dtype: type of the vectors, "float32", "bfloat16" or "int8" (one scale per row); None: as
        stored.
      chunk_size: number of rows scored at a time; memory is O(256 * chunk_size).

    Raises:
      ElqError: no rows, or a row with NaN or infinity.
    """

    has_files = False

    def __init__(
        self,
        embeddings: Embeddings | np.ndarray | jax.Array,
        dtype: str | None = None,
        chunk_size: int = CHUNK_SIZE,
    ):
        if dtype not in (None, *DTYPES):
            raise ElqError(f"dtype {dtype!r}: expected one of {', '.join(DTYPES)}")
        super().__init__(embeddings)
        self._chunk_size = chunk_size
        # Of at most two shapes, so two compilations.
        self._shards = []
        for shard in _join(checked_shards(embeddings)):
            start, values, scale = shard.astype(dtype)
            if jax.default_backend() == "cpu" and values.dtype == ml_dtypes.bfloat16:
                values = values.view(np.uint16)
            self._shards.append(Shard(np.int32(start), *jax.device_put((values, scale))))

    @classmethod
    def build(
        cls,
        embeddings: Embeddings | np.ndarray,
        settings: NoSettings | None = None,
        *,
        devices: Sequence[jax.Device] | None = None,
    ) -> ExactIndex:
        """Opens the embeddings for exact search on the default device."""
        del settings, devices
        return cls(embeddings)

    def nearest(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Finds the k best rows, equal scores in the order of rows.

        It is compiled once for every k and number of queries in (1, 4, 16, 64, 256); other numbers
        of queries are padded or split.
        """

        def nearest(padded: np.ndarray) -> tuple[jax.Array, jax.Array]:
            results = [_search_shard(padded, shard, k, self._chunk_size) for shard in self._shards]
            return _merge(results, k) if len(results) > 1 else results[0]

        return in_batches(nearest, queries, k)


def in_batches(
    nearest: Callable[[np.ndarray], Sequence[np.ndarray | jax.Array]], queries: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Searches for any number of queries with a function that is compiled for a few numbers.

    Args:
      nearest: function from queries [P, D], padded with zeros to one of `QUERY_BUCKETS`, to scores
        [P, k] and rows [P, k].
      queries: [Q, D] float32.
      k: number of rows per query.

    Returns:
      scores [Q, k] float32 and rows [Q, k] int32.
    """
    scores = np.empty((len(queries), k), np.float32)
    rows = np.empty((len(queries), k), np.int32)
    for part, padded in _batches(queries):
        count = part.stop - part.start
        scores[part], rows[part] = (np.asarray(array)[:count] for array in nearest(padded))
    return scores, rows


def _batches(queries: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Cuts queries [Q, D] into zero-padded batches of a few sizes: (slice of rows, batch)."""
    start = 0
    while start < len(queries):
        size = _batch_size(len(queries) - start)
        part = slice(start, min(start + size, len(queries)))
        padded = np.zeros((size, queries.shape[1]), np.float32)
        padded[: part.stop - start] = queries[part]
        yield part, padded
        start = part.stop


def _batch_size(count: int) -> int:
    """Chooses the next batch size for `count` queries; padding many is slower than two batches."""
    larger = next((size for size in QUERY_BUCKETS if size >= count), QUERY_BUCKETS[-1])
    if larger <= 16 or count >= 0.75 * larger:
        return larger
    return max(size for size in QUERY_BUCKETS if size <= count)


def _join(shards: list[Shard]) -> list[Shard]:
    """Joins consecutive shards for accelerators; CPU searches them where they are mapped."""
    if jax.default_backend() == "cpu" or len(shards) == 1:
        return shards
    step = max(1, _PART_BYTES // shards[0].values.nbytes)
    groups = [shards[i : i + step] for i in range(0, len(shards), step)]
    return [
        Shard(
            group[0].start,
            np.concatenate([shard.values for shard in group]),
            None if group[0].scale is None else np.concatenate([shard.scale for shard in group]),
        )
        for group in groups
    ]
