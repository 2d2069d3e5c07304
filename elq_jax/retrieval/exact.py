"""Exact maximum inner product search on one device, over memory-mapped shards on CPU."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from elq_jax.core import devices as devices_lib
from elq_jax.core.errors import ElqError
from elq_jax.core.programs import KeptProgram
from elq_jax.entities.embeddings import DTYPES, Embeddings, Shard, checked_shards
from elq_jax.retrieval.base import INDEXES, Index, NoSettings
from elq_jax.retrieval.table import CHUNK_SIZE, Table, best, converted

# On CPUs, 16 more queries take less time than another batch of a few.
QUERY_BUCKETS = (1, 4, 16, 32, 48, 64, 96, 128, 256)
_MOST_ON_CPU = 128  # Larger batches take more time for each query there.
_FEW_QUERIES = 2  # So many are searched for one after the other on CPUs, if in float32 alone.
_BLOCK = 64
_LEAST_ROWS = 16384
_GROUP = 4  # Number of consecutive rows of which the first pass keeps one score.
_ROWS = 16384  # Number of rows of a product there. Loops over smaller ones take more time.
_ROWS_AT_ONCE = 1 << 17  # Number of rows whose groups are held at a time.
_PART_BYTES = 1 << 30  # Shards are joined up to this size on accelerators.


@functools.partial(jax.jit, static_argnames=("k", "chunk_size"))
def _search_shard(
    queries: jax.Array, shard: Shard, k: int, chunk_size: int
) -> tuple[jax.Array, jax.Array]:
    total = len(shard.values)
    table = Table(shard.values, shard.scale, total, axis_name=None)
    scores, rows = table.nearest(queries, min(k, total), chunk_size, approximate=False)
    return scores, rows + shard.start


@jax.jit
def _group_maxima(queries: jax.Array, values: jax.Array) -> jax.Array:
    """Returns the largest inner product of every group of rows, by numbers rounded to bfloat16.

    Args:
      queries: [Q, D] float32.
      values: [n, D] vectors; uint16 are the bit patterns of bfloat16.

    Returns:
      [ceil(n / _GROUP), Q] float32.
    """
    # XLA makes one kernel of this form, which reads the vectors once; it would compute the product
    # with a transposed array in float32.
    scores = jax.lax.dot_general(
        converted(values, jnp.bfloat16),
        queries.astype(jnp.bfloat16),
        (((1,), (1,)), ((), ())),
        preferred_element_type=jnp.float32,
    )
    scores = jnp.pad(scores, ((0, -len(values) % _GROUP), (0, 0)), constant_values=-jnp.inf)
    return scores.reshape(-1, _GROUP, len(queries)).max(axis=1)


@functools.partial(jax.jit, static_argnames="k")
def _best_groups(maxima: list[jax.Array], k: int) -> tuple[jax.Array, jax.Array]:
    """Returns the k largest of numbers [n, Q], which come in parts: [Q, k], and their places.

    The k largest lie in the k blocks with the largest maxima, so only those are sorted.
    """
    numbers = jnp.concatenate(maxima)
    numbers = jnp.pad(numbers, ((0, -len(numbers) % _BLOCK), (0, 0)), constant_values=-jnp.inf)
    of_blocks = numbers.reshape(-1, _BLOCK, numbers.shape[1]).max(axis=1).T
    _, blocks = jax.lax.top_k(of_blocks, min(k, of_blocks.shape[1]))
    places = jnp.sort(blocks)[:, :, None] * _BLOCK + jnp.arange(_BLOCK)
    places = places.reshape(len(blocks), -1)
    return best(k, numbers[places, jnp.arange(len(blocks))[:, None]], places)


@jax.jit
def _scores_of_one(query: jax.Array, values: jax.Array) -> jax.Array:
    """Computes inner products [n] float32 of a query [1, D] with vectors [n, D].

    XLA fuses this form alone with the conversion of the vectors to float32, so that they are read
    once and never written.
    """
    return jnp.matmul(query, converted(values, jnp.float32).T)[0]


@jax.jit
def _largest_norm(values: jax.Array) -> jax.Array:
    """Returns the largest L2 norm of vectors [n, D]; uint16 are the bit patterns of bfloat16."""
    return jnp.sqrt(jnp.max(jnp.sum(converted(values, jnp.float32) ** 2, axis=1)))


@functools.partial(jax.jit, static_argnames="k")
def _merge(results: list[tuple[jax.Array, jax.Array]], k: int) -> tuple[jax.Array, jax.Array]:
    scores, rows = (jnp.concatenate(parts, axis=1) for parts in zip(*results, strict=True))
    return best(k, scores, rows)


@INDEXES.register("exact")
class ExactIndex(Index):
    """Exact search over embeddings held by the device.

    On CPU, memory-mapped shards are searched where they are: opening copies nothing and costs one
    pass over the file. On accelerators the table is copied to the device's memory.

    CPUs with units for bfloat16 search for several queries in two passes: one over numbers rounded
    to bfloat16 finds groups of four rows, a few more than rows are asked for, and the float32
    scores of these rows decide. Where the
    error of rounding might have hidden a better row, the query is searched for in float32. For one
    or two queries they score the vectors in float32, one query after the other, which takes the
    time of reading the vectors; scores differ in the last digit from those of a larger batch.

    Args:
      embeddings: opened `Embeddings`, or an array [E, D] of floats, which is not always copied on
        CPU: do not change it afterwards.
      dtype: type of the vectors, "float32", "bfloat16" or "int8" (one scale per row); None: as
        stored.
      chunk_size: number of rows scored at a time in float32; memory is O(256 * chunk_size).
      products: type of the products of the first pass: "bfloat16", "float32" for searching in one
        pass, or "auto", see `devices.compute_dtype`.

    Raises:
      ElqError: no rows, or a row with NaN or infinity.
    """

    has_files = False
    is_compiled = True

    def __init__(
        self,
        embeddings: Embeddings | np.ndarray | jax.Array,
        dtype: str | None = None,
        chunk_size: int = CHUNK_SIZE,
        products: str = "auto",
    ):
        if dtype not in (None, *DTYPES):
            raise ElqError(f"dtype {dtype!r}: expected one of {', '.join(DTYPES)}")
        if chunk_size < 1:
            raise ElqError(f"chunk_size = {chunk_size}: expected at least 1")
        super().__init__(embeddings)
        self._chunk_size = chunk_size
        # Of few shapes, so few compilations.
        self._shards, self._on_host = [], []
        on_cpu = jax.default_backend() == "cpu"
        shards = checked_shards(embeddings)
        for shard in itertools.chain.from_iterable(map(_cut, shards)) if on_cpu else _join(shards):
            start, values, scale = shard = shard.astype(dtype)
            if on_cpu:
                self._on_host.append(shard)
                if values.dtype == ml_dtypes.bfloat16:
                    values = values.view(np.uint16)
            self._shards.append(Shard(np.int32(start), *jax.device_put((values, scale))))
        self._takes_turns = on_cpu and devices_lib.compute_dtype(products) == "bfloat16"
        self._score = KeptProgram(_scores_of_one, "scores of one query", jax.local_devices()[:1])
        self._rounds = (
            self._takes_turns
            and self._shards[0].scale is None
            and len(self._shards[0].values) >= _LEAST_ROWS
        )

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

        It is compiled once for every k and number of queries in `QUERY_BUCKETS`; other numbers of
        queries are padded or split.
        """
        count = 2 * k + 8
        if not self._rounds or len(queries) < 2 or count > len(self._group_rows):
            return self._in_float32(queries, k)
        parts = np.array_split(queries, -(-len(queries) // _MOST_ON_CPU))  # none of one query
        found = [self._in_two_passes(part, k, count) for part in parts]
        scores, rows, is_certain = map(np.concatenate, zip(*found, strict=True))
        if not is_certain.all():
            again = ~is_certain
            scores[again], rows[again] = self._in_float32(queries[again], k)
        return scores, rows

    def _nearest_to_one(self, query: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Finds the k best rows of a query [D]: scores [k] and rows [k]."""
        parts = [self._score(query[None], shard.values) for shard in self._shards]
        scales = [shard.scale for shard in self._on_host]
        return largest(
            np.concatenate(
                [
                    np.asarray(part) if scale is None else np.asarray(part) * scale
                    for part, scale in zip(parts, scales, strict=True)
                ]
            ),
            k,
        )

    def _in_float32(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Finds the k best rows by float32 scores alone, few queries one after the other."""
        if self._takes_turns and len(queries) <= _FEW_QUERIES:
            scores, rows = zip(*(self._nearest_to_one(query, k) for query in queries), strict=True)
            return np.stack(scores), np.stack(rows)
        return self._in_one_pass(queries, k)

    def _in_one_pass(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        return in_batches(functools.partial(self._search, k), queries, k)

    def _search(self, k: int, queries: np.ndarray) -> tuple[jax.Array, jax.Array]:
        results = [_search_shard(queries, shard, k, self._chunk_size) for shard in self._shards]
        return _merge(results, k) if len(results) > 1 else results[0]

    def _in_two_passes(
        self, queries: np.ndarray, k: int, count: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Finds `count` groups of rows by rounded numbers, and their k best rows in float32.

        Returns:
          scores [Q, k], rows [Q, k], and [Q] bool: whether no other row can be among the k best.
        """
        search = functools.partial(self._search_groups, count)
        maxima, groups = in_batches(search, queries, count)
        groups.sort(axis=1)  # Equal scores are in the order of rows.
        first, stop = np.moveaxis(self._group_rows[groups], -1, 0)
        rows = first[:, :, None] + np.arange(_GROUP, dtype=np.int32)
        is_row = (rows < stop[:, :, None]).reshape(len(queries), -1)
        rows = np.minimum(rows, stop[:, :, None] - 1).reshape(len(queries), -1)
        scores = np.matmul(self._vectors(rows), queries[:, :, None])[:, :, 0]
        scores[~is_row] = -np.inf
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        scores, rows = (np.take_along_axis(array, order, axis=1) for array in (scores, rows))
        # A row of another group has a rounded score of at most the last one's. Numbers are
        # rounded by at most 2**-9 of their size, so inner products by at most twice that (and a
        # little more) times the norms; sums of D numbers in float32, by D * 2**-23.
        share = 2.01 * 2**-9 + self.shape[1] * 2**-23
        bound = share * self._norm * np.linalg.norm(queries, axis=1)
        return scores, rows, scores[:, -1] > maxima[:, -1] + bound

    def _search_groups(self, count: int, queries: np.ndarray) -> tuple[jax.Array, jax.Array]:
        """Finds the groups with the largest rounded scores: these and their numbers, [Q, count]."""
        results, maxima, first, rows = [], [], 0, 0
        for shard in self._shards:
            if rows + len(shard.values) > _ROWS_AT_ONCE and maxima:
                results.append(self._best_of(maxima, first, count))
                first, maxima, rows = first + sum(map(len, maxima)), [], 0
            # One shard after the other: programs that wait for their turn hold memory already.
            maxima.append(_group_maxima(queries, shard.values).block_until_ready())
            rows += len(shard.values)
        results.append(self._best_of(maxima, first, count))
        return _merge(results, count) if len(results) > 1 else results[0]

    @staticmethod
    def _best_of(maxima: list[jax.Array], first: int, count: int) -> tuple[jax.Array, jax.Array]:
        largest, groups = _best_groups(maxima, min(count, sum(map(len, maxima))))
        return largest, groups + first

    @functools.cached_property
    def _group_rows(self) -> np.ndarray:
        """Returns the first row of each group, and the row after the last of its shard: [G, 2]."""
        parts = []
        for start, values, _ in self._on_host:
            first = np.arange(start, start + len(values), _GROUP, dtype=np.int32)
            parts.append(np.stack([first, np.full_like(first, start + len(values))], axis=1))
        return np.concatenate(parts)

    @functools.cached_property
    def _norm(self) -> float:
        """Returns the largest norm of a row."""
        return max(float(_largest_norm(shard.values)) for shard in self._shards)

    def _vectors(self, rows: np.ndarray) -> np.ndarray:
        """Looks up vectors of rows [Q, n] as float32 [Q, n, D]."""
        vectors = np.empty((*rows.shape, self.shape[1]), np.float32)
        numbers = np.searchsorted([shard.start for shard in self._on_host], rows, "right") - 1
        for number in np.unique(numbers):
            start, values, _ = self._on_host[number]
            held = numbers == number
            vectors[held] = values[rows[held] - start]
        return vectors


def largest(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Finds the k largest of many numbers, faster than `np.argpartition`.

    Args:
      scores: [n] float32.
      k: number of places to find, 1 <= k <= n.

    Returns:
      the k largest numbers, descending, and their places [k] int32; equal ones by place.
    """
    # k blocks have a number of at least the k-th largest maximum of a block.
    maxima = np.maximum.reduceat(scores, np.arange(0, len(scores), _BLOCK))
    limit = -np.inf if k > len(maxima) else np.partition(maxima, -k)[-k]
    places = np.flatnonzero(scores >= limit)
    places = places[np.argsort(-scores[places], kind="stable")[:k]]
    return scores[places], places.astype(np.int32)


def in_batches(
    nearest: Callable[[np.ndarray], Sequence[np.ndarray | jax.Array]],
    queries: np.ndarray,
    k: int,
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
    most = _MOST_ON_CPU if jax.default_backend() == "cpu" else QUERY_BUCKETS[-1]
    for start in range(0, len(queries), most):
        part = slice(start, min(start + most, len(queries)))
        count = part.stop - start
        size = next(size for size in QUERY_BUCKETS if size >= count)
        padded = np.zeros((size, queries.shape[1]), np.float32)
        padded[:count] = queries[part]
        yield part, padded


def _cut(shard: Shard) -> Iterator[Shard]:
    """Cuts a large shard to views of it."""
    for start in range(0, len(shard.values), _ROWS):
        part = slice(start, start + _ROWS)
        scale = None if shard.scale is None else shard.scale[part]
        yield Shard(shard.start + start, shard.values[part], scale)


def _join(shards: list[Shard]) -> list[Shard]:
    """Joins consecutive shards."""
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
