"""Exact maximum inner product search on the device, with bounded memory.

One table is searched chunk by chunk: the scores of a chunk ([chunk, Q]) are the largest array. To
find a chunk's top k without sorting it, the maximum of every block of 32 consecutive rows is taken
first; the top k rows lie in the k blocks with the highest maxima, so only those are sorted.

Equal scores are ordered by row, as `jax.lax.top_k` of the whole would.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import flax.struct
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax import lax

from elq_jax.core.errors import ElqError
from elq_jax.entities.embeddings import (
    DTYPES,
    Embeddings,
    Shard,
    checked,
    checked_shards,
    quantize,
)
from elq_jax.retrieval.base import INDEXES, Index, NoSettings

CHUNK_SIZE = 32768
QUERY_BUCKETS = (1, 4, 16, 64, 256)
_BLOCK = 32
_PIECE = 1024  # Rows per matrix product on CPU: what fits in the cache of one core.
_PART_BYTES = 1 << 30  # Shards are joined up to this size on accelerators.


def chunked_top_k(
    queries: jax.Array,
    table: jax.Array,
    k: int,
    chunk_size: int = CHUNK_SIZE,
    scale: jax.Array | None = None,
    num_rows: jax.Array | int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The k rows of a table with the highest inner product, for use under `jit`.

    Pass the table as an argument of the compiled function: a closed-over table becomes a constant
    of the program. Memory beyond the table is O(Q * chunk_size).

    Args:
      queries: [Q, D] float32.
      table: [E, D] float32, bfloat16, int8 (with `scale`), or uint16: the bit pattern of bfloat16,
        which is much faster than bfloat16 on CPU (XLA would convert the whole table first).
      k: 1 <= k <= E, static.
      chunk_size: rows scored at a time, static.
      scale: [E] float32, the factor of each row of an int8 table.
      num_rows: only rows below this count, may be traced; the others are padding. None: all E. If
        fewer than k rows count, the results beyond them have score -inf and a meaningless row.

    Returns:
      scores [Q, k] float32, descending, and rows [Q, k] int32.

    Raises:
      ElqError: k or chunk_size is out of range, or the widths differ.
    """
    total = table.shape[0]
    if queries.shape[-1] != table.shape[1]:
        raise ElqError(f"queries: width {queries.shape[-1]}, the table has {table.shape[1]}")
    if not 1 <= k <= total:
        raise ElqError(f"k = {k}: expected 1 <= k <= {total} rows")
    if chunk_size < 1:
        raise ElqError(f"chunk_size = {chunk_size}: expected at least 1")
    on_cpu = jax.default_backend() == "cpu"
    if on_cpu and table.dtype == jnp.bfloat16:
        table = lax.bitcast_convert_type(table, jnp.uint16)
    transposed = queries.astype(jnp.float32).T
    # Reduced precision is for tables of reduced precision only.
    precision = "highest" if table.dtype == jnp.float32 else "default"
    limit = total if num_rows is None else num_rows

    def score(start, size):
        """Scores [size, Q] of `size` rows from `start`, which may reach beyond the end."""
        first = jnp.minimum(start, total - size)
        rows = first + jnp.arange(size, dtype=jnp.int32)
        values = lax.dynamic_slice_in_dim(table, first, size)
        if table.dtype == jnp.uint16:
            values = lax.bitcast_convert_type(values.astype(jnp.uint32) << 16, jnp.float32)
        scores = jnp.matmul(values.astype(jnp.float32), transposed, precision=precision)
        if scale is not None:
            scores = scores * lax.dynamic_slice_in_dim(scale, first, size)[:, None]
        # Near the end `first < start`: rows before `start` belong to the piece before.
        row_mask = (rows >= start) & (rows < limit)
        return jnp.where(row_mask[:, None], scores, -jnp.inf)

    piece = _round_up(min(chunk_size, _PIECE) if on_cpu else chunk_size, _BLOCK)
    if total <= piece:
        return lax.top_k(score(0, total).T, k)
    # Chunks of equal size, so that the last one is not mostly padding.
    num_chunks = -(-total // max(chunk_size, piece))
    chunk = _round_up(-(-total // num_chunks), piece)
    starts = jnp.arange(0, chunk, piece, dtype=jnp.int32)

    def search_chunk(chunk_start):
        scores = lax.map(lambda start: score(chunk_start + start, piece), starts)
        scores = scores.reshape(chunk // _BLOCK, _BLOCK, -1)
        _, blocks = lax.top_k(scores.max(axis=1).T, min(k, chunk // _BLOCK))
        places = jnp.sort(blocks)[:, :, None] * _BLOCK + jnp.arange(_BLOCK)  # ascending by row
        places = places.reshape(len(blocks), -1)
        scores = scores.reshape(chunk, -1)[places, jnp.arange(len(places))[:, None]]
        scores, order = lax.top_k(scores, min(k, chunk))
        places = jnp.take_along_axis(places, order, axis=1)
        first = jnp.minimum(chunk_start + places // piece * piece, total - piece)
        return scores, first + places % piece

    chunk_starts = jnp.arange(0, num_chunks * chunk, chunk, dtype=jnp.int32)
    scores, rows = lax.map(search_chunk, chunk_starts)  # [chunks, Q, min(k, chunk)]
    return _best(k, _side_by_side(scores), _side_by_side(rows))


def _side_by_side(results: jax.Array) -> jax.Array:
    """[N, Q, n] -> [Q, N * n]."""
    return results.swapaxes(0, 1).reshape(results.shape[1], -1)


def _best(k: int, scores: jax.Array, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The k best of [Q, n] results whose equal scores are in the order of rows."""
    scores, order = lax.top_k(scores, k)
    return scores, jnp.take_along_axis(rows, order, axis=1)


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


@functools.partial(jax.jit, static_argnames=("k", "chunk_size"))
def _search_part(queries, table, scale, first_row, k, chunk_size):
    scores, rows = chunked_top_k(queries, table, min(k, table.shape[0]), chunk_size, scale)
    return scores, rows + first_row


@functools.partial(jax.jit, static_argnames="k")
def _merge(found, k):
    scores, rows = (jnp.concatenate(parts, axis=1) for parts in zip(*found, strict=True))
    return _best(k, scores, rows)


@INDEXES.register("exact")
class ExactIndex(Index):
    """Exact search over embeddings held by the device.

    On CPU, memory-mapped shards are searched where they are: opening copies nothing and costs one
    pass over the file. On accelerators the table is copied to the device's memory.

    Args:
      embeddings: opened `Embeddings`, or an array [E, D] of floats (not copied on CPU where it can
        be avoided: do not change it afterwards).
      dtype: "float32", "bfloat16" or "int8" (one scale per row); None: as stored.
      chunk_size: rows scored at a time; memory is O(256 * chunk_size).

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
        # (first row, table, scale) of each part; at most two table shapes, so two compilations.
        self._parts = []
        for part in _join(checked_shards(embeddings)):
            values, scale = _as_dtype(part, dtype)
            if jax.default_backend() == "cpu" and values.dtype == ml_dtypes.bfloat16:
                values = values.view(np.uint16)
            scale = None if scale is None else jax.device_put(scale)
            self._parts.append((np.int32(part.start), jax.device_put(values), scale))

    @classmethod
    def build(
        cls,
        embeddings: Embeddings | np.ndarray,
        settings: NoSettings | None = None,
        *,
        devices: Sequence[jax.Device] | None = None,
    ) -> ExactIndex:
        """Opens the embeddings for exact search by the default device."""
        del settings, devices
        return cls(embeddings)

    def nearest(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Finds the k best rows, equal scores in the order of rows.

        Compiled once for every k and number of queries in (1, 4, 16, 64, 256); others are padded
        or split.
        """
        scores = np.empty((len(queries), k), np.float32)
        rows = np.empty((len(queries), k), np.int32)
        for part, padded in query_batches(queries):
            found = [
                _search_part(padded, table, scale, first_row, k, self._chunk_size)
                for first_row, table, scale in self._parts
            ]
            best = _merge(found, k) if len(found) > 1 else found[0]
            count = part.stop - part.start
            scores[part], rows[part] = (np.asarray(x)[:count] for x in best)
        return scores, rows


def query_batches(queries: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Cuts queries [Q, D] into batches of a few sizes: (which rows, the batch, zero-padded)."""
    start = 0
    while start < len(queries):
        size = _batch_size(len(queries) - start)
        part = slice(start, min(start + size, len(queries)))
        padded = np.zeros((size, queries.shape[1]), np.float32)
        padded[: part.stop - start] = queries[part]
        yield part, padded
        start = part.stop


def _batch_size(count: int) -> int:
    """How many queries to search next, of `count`: padding many is slower than another batch."""
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


def _as_dtype(shard: Shard, dtype: str | None) -> tuple[np.ndarray, np.ndarray | None]:
    if dtype in (None, "int8" if shard.scale is not None else shard.values.dtype.name):
        return shard.values, shard.scale
    values = shard.float32()
    if dtype == "int8":
        return quantize(values)
    return values.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float32), None


class Table(flax.struct.PyTreeNode):
    """A table of which every device holds consecutive rows, as a mapped function sees it.

    Attributes:
      values: [E_local, D] float32, bfloat16 or int8; row r of device d is entity d * E_local + r.
      scale: [E_local] float32 for int8, else None.
      num_rows: E, of all devices together; rows from there on are padding.
    """

    values: jax.Array
    scale: jax.Array | None
    num_rows: int = flax.struct.field(pytree_node=False)

    @property
    def shape(self) -> tuple[int, int]:
        """(E, D)."""
        return self.num_rows, self.values.shape[-1]


def shard_table(
    table: Embeddings | np.ndarray,
    num_shards: int,
    dtype: str | None = None,
    only: Sequence[int] | None = None,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Divides a table into equal shards of consecutive rows, one per device.

    Args:
      table: [E, D].
      num_shards: N.
      dtype: "float32", "bfloat16" or "int8"; None: as stored.
      only: the n shards that are wanted; all by default. No others are read.

    Returns:
      values [n, ceil(E / N), D], zero beyond row E - 1, and for int8 their scale
      [n, ceil(E / N)] float32, else None.

    Raises:
      ElqError: not a table, or a row with NaN or infinity.
    """
    parts = table.shards if isinstance(table, Embeddings) else checked_shards(table)
    rows, width = table.shape
    size = -(-rows // num_shards)
    if dtype is None:
        dtype = "int8" if parts[0].scale is not None else parts[0].values.dtype.name
    only = range(num_shards) if only is None else only
    values = np.zeros((len(only), size, width), np.dtype(dtype))
    scale = np.ones((len(only), size), np.float32) if dtype == "int8" else None
    for place, shard in enumerate(only):
        first = shard * size
        for part in parts:
            start, stop = max(first, part.start), min(first + size, part.start + len(part.values))
            if start < stop:
                cut = slice(start - part.start, stop - part.start)
                piece = Shard(
                    start, part.values[cut], None if part.scale is None else part.scale[cut]
                )
                found, found_scale = _as_dtype(checked(piece), dtype)
                to = slice(start - first, stop - first)
                values[place, to] = found
                if scale is not None:
                    scale[place, to] = found_scale
    return values, scale


def sharded_top_k(
    queries: jax.Array,
    shard: jax.Array,
    k: int,
    num_rows: int,
    axis_name: str,
    scale: jax.Array | None = None,
    chunk_size: int = CHUNK_SIZE,
    approximate: bool | None = None,
    recall_target: float = 0.95,
) -> tuple[jax.Array, jax.Array]:
    """Searches a table whose rows are spread over devices, inside `jax.pmap` or `shard_map`.

    Every device scores the queries of all devices on its own rows; results travel, rows do not.

    Args:
      queries: [Q, D] float32, this device's own.
      shard: [E_local, D] as `chunked_top_k`; the device with index i along the axis holds rows
        i * E_local, i * E_local + 1, ... of the table (`shard_table`).
      k: 1 <= k <= num_rows, static.
      num_rows: E, the rows of the whole table without padding.
      axis_name: of the mapped axis.
      scale: [E_local] float32 for an int8 shard.
      chunk_size: rows scored at a time.
      approximate: use `jax.lax.approx_max_k`, fast on TPU only. None: on TPU.
      recall_target: of the approximate search.

    Returns:
      scores [Q, k] float32 and rows [Q, k] int32 of the whole table, for this device's queries.

    Raises:
      ElqError: k is out of range.
    """
    if not 1 <= k <= num_rows:
        raise ElqError(f"k = {k}: expected 1 <= k <= {num_rows} rows")
    if approximate is None:
        approximate = jax.default_backend() == "tpu"
    num_queries, num_local = queries.shape[0], shard.shape[0]
    first_row = lax.axis_index(axis_name) * num_local
    queries = lax.all_gather(queries, axis_name, tiled=True)
    local_k = min(k, num_local)
    if approximate:
        scores, rows = _approximate_top_k(
            queries, shard, scale, local_k, num_rows, first_row, chunk_size, recall_target
        )
    else:
        num_counting = jnp.clip(num_rows - first_row, 0, num_local)
        scores, rows = chunked_top_k(queries, shard, local_k, chunk_size, scale, num_counting)

    def to_owner(results):
        """[N * Q, local_k] of this device's rows -> [Q, N * local_k] of this device's queries."""
        results = results.reshape(-1, num_queries, local_k)
        return _side_by_side(lax.all_to_all(results, axis_name, split_axis=0, concat_axis=0))

    return _best(k, to_owner(scores), to_owner(rows + first_row))


def _approximate_top_k(
    queries, shard, scale, k, num_rows, first_row, chunk_size, recall_target
) -> tuple[jax.Array, jax.Array]:
    """The k best rows of a shard by `jax.lax.approx_max_k`, a chunk of rows at a time."""
    num_local = shard.shape[0]
    # Chunks of equal size; the last one begins early enough to be whole.
    num_chunks = -(-num_local // max(chunk_size, k))
    chunk = -(-num_local // num_chunks)

    def search_chunk(start):
        first = jnp.minimum(start, num_local - chunk)
        rows = first + jnp.arange(chunk, dtype=jnp.int32)
        values = lax.dynamic_slice_in_dim(shard, first, chunk)
        scores = jnp.matmul(queries, values.astype(jnp.float32).T)
        if scale is not None:
            scores = scores * lax.dynamic_slice_in_dim(scale, first, chunk)
        scores = jnp.where((rows >= start) & (first_row + rows < num_rows), scores, -jnp.inf)
        scores, places = lax.approx_max_k(
            scores, k, recall_target=recall_target, reduction_input_size_override=num_rows
        )
        return scores, first + places

    scores, rows = lax.map(search_chunk, jnp.arange(0, num_chunks * chunk, chunk, dtype=jnp.int32))
    return _best(k, _side_by_side(scores), _side_by_side(rows))


def gather_rows(
    shard: jax.Array, rows: jax.Array, axis_name: str, scale: jax.Array | None = None
) -> jax.Array:
    """Looks up rows of a table spread over devices, inside `jax.pmap` or `shard_map`.

    Args:
      shard: [E_local, D], as for `sharded_top_k`.
      rows: int of any shape, rows of the whole table, this device's own.
      axis_name: of the mapped axis.
      scale: [E_local] float32 for an int8 shard.

    Returns:
      [*rows.shape, D] float32; zero for rows that no device holds (-1).
    """
    all_rows = lax.all_gather(rows, axis_name)
    local = all_rows - lax.axis_index(axis_name) * shard.shape[0]
    held_mask = (local >= 0) & (local < shard.shape[0])
    local = jnp.where(held_mask, local, 0)
    vectors = shard[local].astype(jnp.float32)
    if scale is not None:
        vectors = vectors * scale[local][..., None]
    return lax.psum_scatter(jnp.where(held_mask[..., None], vectors, 0), axis_name)
