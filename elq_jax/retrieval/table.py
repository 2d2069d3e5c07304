"""Spreads all entity vectors over devices: look-up, search, and softmax over all entities.

The one loop over chunks of rows (`Table._scan`) serves search and softmax, so that no array of all
scores is ever held. Equal scores are ordered by row, as `jax.lax.top_k` of the whole would.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from elq_jax.core import devices as devices_lib
from elq_jax.core.errors import ElqError
from elq_jax.entities.embeddings import Embeddings, Shard, checked, checked_shards

CHUNK_SIZE = 32768
_BLOCK = 32
_PIECE = 1024  # Rows per matrix product on CPU: what fits in the cache of one core.
_SCORES = 2**18  # Scores per product in bfloat16, which needs larger ones: what fits there too.


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("values", "scale"),
    meta_fields=("num_rows", "axis_name", "products"),
)
@dataclass(frozen=True, eq=False)
class Table:
    """A table of entity vectors of which every device holds consecutive rows.

    The methods are for use inside `devices.parallel` (or `jax.shard_map` over the same axis name),
    where all devices call them together. Pass the table as an argument of the compiled function: a
    closed-over table becomes a constant of the program.

    Attributes:
      values: [E_local, D] float32, bfloat16, int8 (with `scale`), or uint16: the bit pattern of
        bfloat16. Row r of the device with index i along the axis is entity i * E_local + r.
      scale: [E_local] float32, the factor of each row of an int8 table, else None.
      num_rows: E, number of rows of all devices together; further rows are padding.
      axis_name: name of the mapped axis of the devices that share the table; None: this table is
        the whole one, and its methods work anywhere.
      products: type of the operands with which `nearest` compares queries and rows, "float32" or
        "bfloat16". With bfloat16, scores on CPUs are of rounded numbers, and summed in float32.
    """

    values: jax.Array
    scale: jax.Array | None
    num_rows: int
    axis_name: str | None = devices_lib.AXIS
    products: str = "float32"

    @classmethod
    def divide(
        cls,
        embeddings: Embeddings | np.ndarray,
        num_devices: int,
        dtype: str | None = None,
        only: Sequence[int] | None = None,
    ) -> Table:
        """Divides embeddings into equal parts of consecutive rows, in the host's memory.

        Args:
          embeddings: [E, D] entity vectors.
          num_devices: P, number of devices.
          dtype: type of the vectors, "float32", "bfloat16" or "int8"; None: as stored.
          only: numbers of the p wanted parts, all by default; no other parts are read.

        Returns:
          a table of NumPy arrays with a leading axis: values [p, ceil(E / P), D], zero beyond row
          E - 1, and for int8 their scale [p, ceil(E / P)].

        Raises:
          ElqError: not a table, or a row with NaN or infinity.
        """
        if isinstance(embeddings, Embeddings):
            shards = embeddings.shards  # Checked below, as far as they are read.
        else:
            shards = checked_shards(embeddings)
        rows, width = embeddings.shape
        size = -(-rows // num_devices)
        dtype = dtype or shards[0].dtype
        only = range(num_devices) if only is None else only
        values = np.zeros((len(only), size, width), np.dtype(dtype))
        scale = np.ones((len(only), size), np.float32) if dtype == "int8" else None
        for place, device in enumerate(only):
            first = device * size
            for shard in shards:
                start = max(first, shard.start)
                stop = min(first + size, shard.start + len(shard.values))
                if start < stop:
                    piece = checked(shard.part(start, stop)).astype(dtype)
                    values[place, start - first : stop - first] = piece.values
                    if scale is not None:
                        scale[place, start - first : stop - first] = piece.scale
        return cls(values, scale, rows)

    @classmethod
    def place(
        cls,
        embeddings: Embeddings | np.ndarray,
        devices: Sequence[jax.Device],
        dtype: str | None = None,
    ) -> Table:
        """Spreads embeddings over devices; a process reads the rows of its own devices only.

        Args:
          embeddings: [E, D] entity vectors.
          devices: P devices of this process and perhaps others.
          dtype: type on the devices, "float32", "bfloat16" or "int8"; None: as stored.

        Returns:
          a table whose arrays have a leading axis of this process's devices, for a function made
          by `devices.parallel`.

        Raises:
          ElqError: not a table, or a row with NaN or infinity.
        """
        own = devices_lib.local(devices)
        only = [i for i, device in enumerate(devices) if device in own]
        table = cls.divide(embeddings, len(devices), dtype, only)
        if own[0].platform == "cpu" and table.values.dtype == jnp.bfloat16:
            # As `_as_bits` would do in every call, with a copy.
            table = replace(table, values=table.values.view(np.uint16))
        return devices_lib.place(table, own)

    @property
    def shape(self) -> tuple[int, int]:
        """Returns the shape of the whole table, (E, D)."""
        return self.num_rows, self.values.shape[-1]

    def gather(self, rows: jax.Array) -> jax.Array:
        """Looks up rows of the whole table.

        Args:
          rows: int of any shape, this device's own.

        Returns:
          [*rows.shape, D] float32; zero for rows that no device holds (-1).
        """
        local = self._from_all(rows, tiled=False) - self._first_row
        held_mask = (local >= 0) & (local < len(self.values))
        local = jnp.where(held_mask, local, 0)
        vectors = converted(self.values[local], jnp.float32)
        if self.scale is not None:
            vectors = vectors * self.scale[local][..., None]
        vectors = jnp.where(held_mask[..., None], vectors, 0)
        if self.axis_name is None:
            return vectors
        return lax.psum_scatter(vectors, self.axis_name)

    def nearest(
        self,
        queries: jax.Array,
        k: int,
        chunk_size: int = CHUNK_SIZE,
        approximate: bool | None = None,
        recall_target: float = 0.95,
    ) -> tuple[jax.Array, jax.Array]:
        """Finds the k rows of the whole table with the highest inner product.

        Every device scores the queries of all devices on its own rows; results travel, rows do not.
        Memory beyond the table is O(Q * chunk_size).

        Args:
          queries: [Q, D] float32, this device's own.
          k: number of rows per query, 1 <= k <= E, static.
          chunk_size: number of rows scored at a time, static.
          approximate: whether to use `jax.lax.approx_max_k`, fast on TPU only. None: on TPU.
          recall_target: recall that the approximate search aims at.

        Returns:
          scores [Q, k] float32, descending, and rows [Q, k] int32; equal scores by row unless
          approximate.

        Raises:
          ElqError: k or chunk_size is out of range, or the widths differ.
        """
        if queries.shape[-1] != self.shape[1]:
            raise ElqError(f"queries: found width {queries.shape[-1]}, expected {self.shape[1]}")
        if not 1 <= k <= self.num_rows:
            raise ElqError(f"k = {k}: expected 1 <= k <= {self.num_rows} rows")
        if chunk_size < 1:
            raise ElqError(f"chunk_size = {chunk_size}: expected at least 1")
        if approximate is None:
            approximate = jax.default_backend() == "tpu"
        local_k = min(k, len(self.values))
        everyone = self._from_all(queries.astype(jnp.float32))
        if approximate:
            scores, rows = self._approximate(everyone, local_k, chunk_size, recall_target)
        else:
            scores, rows = self._as_bits()._exact(everyone, local_k, chunk_size)
        if self.axis_name is None:
            return scores, rows

        def to_owner(results: jax.Array) -> jax.Array:
            """Sends results [P * Q, local_k] to the queries' devices: [Q, P * local_k]."""
            results = results.reshape(-1, len(queries), local_k)
            results = lax.all_to_all(results, self.axis_name, split_axis=0, concat_axis=0)
            return _side_by_side(results)

        return best(k, to_owner(scores), to_owner(rows + self._first_row))

    def log_normalizer(self, queries: jax.Array, chunk_size: int = 16384) -> jax.Array:
        """Computes log sum_e exp(q . e) over all entities, the normaliser of p(e | [i, j]).

        The gradient for the queries (the expected entity vector under the softmax) recomputes the
        logits chunk by chunk, so neither pass holds [Q, E]. No gradient flows to the table.

        Args:
          queries: [Q, D] float32, this device's own.
          chunk_size: number of rows scored at a time, static; memory is O(Q * chunk_size).

        Returns:
          [Q] float32.
        """
        return _log_normalizer(queries, self._as_bits(), chunk_size)

    @property
    def _first_row(self) -> jax.Array | int:
        """Returns the number, in the whole table, of this device's first row."""
        return 0 if self.axis_name is None else lax.axis_index(self.axis_name) * len(self.values)

    def _from_all(self, array: jax.Array, tiled: bool = True) -> jax.Array:
        """Gathers arrays [n, ...] of all devices: [P * n, ...], or [P, n, ...] if not `tiled`."""
        if self.axis_name is None:
            return array
        return lax.all_gather(array, self.axis_name, tiled=tiled)

    def _as_bits(self) -> Table:
        """Views bfloat16 as uint16 on CPU, where XLA would convert the whole table to float32."""
        if self.values.dtype != jnp.bfloat16 or jax.default_backend() != "cpu":
            return self
        return replace(self, values=lax.bitcast_convert_type(self.values, jnp.uint16))

    def _scan(
        self, function: Callable[[Any, jax.Array], tuple[Any, Any]], carry: Any, chunk: int
    ) -> tuple[Any, Any]:
        """Folds `function(carry, start) -> (carry, result)` over the starts of all chunks."""
        return lax.scan(function, carry, jnp.arange(0, len(self.values), chunk, dtype=jnp.int32))

    def _rows(
        self, start: jax.Array, size: int, dtype: jnp.dtype = jnp.float32
    ) -> tuple[Shard, jax.Array]:
        """Returns `size` rows of this device from `start` on as `dtype`, and a mask [size].

        Near the end, where there are fewer, it returns the last `size` rows. A row counts if it is
          1. not before `start`, since it belongs to another chunk then,
          2. a row of the table and no padding.
        """
        first = jnp.minimum(start, len(self.values) - size)
        rows = first + jnp.arange(size, dtype=jnp.int32)
        row_mask = (rows >= start) & (rows < self.num_rows - self._first_row)
        values = converted(lax.dynamic_slice_in_dim(self.values, first, size), dtype)
        if self.scale is None:
            return Shard(first, values), row_mask
        return Shard(first, values, lax.dynamic_slice_in_dim(self.scale, first, size)), row_mask

    def _logits(self, queries: jax.Array, start: jax.Array, size: int) -> tuple[jax.Array, Shard]:
        """Computes inner products [Q, size] with `_rows`, -inf where masked, and the rows."""
        shard, row_mask = self._rows(start, size)
        logits = queries @ shard.values.T
        if shard.scale is not None:
            logits = logits * shard.scale
        return jnp.where(row_mask, logits, -jnp.inf), shard

    def _exact(self, queries: jax.Array, k: int, chunk_size: int) -> tuple[jax.Array, jax.Array]:
        """Finds the k best of this device's rows: scores and local row numbers, [Q, k].

        To find a chunk's top k without sorting it, the maximum of every block of 32 consecutive
        rows is taken first; the top k rows lie in the k blocks with the highest maxima, so only
        those are sorted. The axis of rows comes first here ([rows, Q]), which is faster on CPUs.
        """
        on_cpu = jax.default_backend() == "cpu"
        dtype = jnp.dtype(self.products if on_cpu else "float32")
        total, transposed = len(self.values), queries.T.astype(dtype)
        # Reduced precision is for tables of reduced precision only.
        precision = "highest" if self.values.dtype == jnp.float32 else "default"

        def score(start: jax.Array, size: int) -> jax.Array:
            shard, row_mask = self._rows(start, size, dtype)
            scores = jnp.matmul(
                shard.values, transposed, precision=precision, preferred_element_type=jnp.float32
            )
            if shard.scale is not None:
                scores = scores * shard.scale[:, None]
            return jnp.where(row_mask[:, None], scores, -jnp.inf)

        piece = max(_PIECE, _SCORES // len(queries)) if dtype == jnp.bfloat16 else _PIECE
        piece = _round_up(min(chunk_size, piece) if on_cpu else chunk_size, _BLOCK)
        if total <= piece:
            return lax.top_k(score(jnp.int32(0), total).T, k)
        chunk = _even_chunk(total, max(chunk_size, piece), piece)
        pieces = jnp.arange(0, chunk, piece, dtype=jnp.int32)

        def search_chunk(_: None, chunk_start: jax.Array) -> tuple[None, tuple[jax.Array, ...]]:
            scores = lax.map(lambda start: score(chunk_start + start, piece), pieces)
            scores = scores.reshape(chunk // _BLOCK, _BLOCK, -1)
            _, blocks = lax.top_k(scores.max(axis=1).T, min(k, chunk // _BLOCK))
            places = jnp.sort(blocks)[:, :, None] * _BLOCK + jnp.arange(_BLOCK)  # ascending by row
            places = places.reshape(len(blocks), -1)
            scores = scores.reshape(chunk, -1)[places, jnp.arange(len(places))[:, None]]
            scores, places = best(min(k, chunk), scores, places)
            first = jnp.minimum(chunk_start + places // piece * piece, total - piece)
            return None, (scores, first + places % piece)

        _, (scores, rows) = self._scan(search_chunk, None, chunk)
        return best(k, _side_by_side(scores), _side_by_side(rows))

    def _approximate(
        self, queries: jax.Array, k: int, chunk_size: int, recall_target: float
    ) -> tuple[jax.Array, jax.Array]:
        """Finds what `_exact` does, approximately, by `jax.lax.approx_max_k`."""
        chunk = _even_chunk(len(self.values), max(chunk_size, k))

        def search_chunk(_: None, start: jax.Array) -> tuple[None, tuple[jax.Array, ...]]:
            scores, shard = self._logits(queries, start, chunk)
            scores, places = lax.approx_max_k(
                scores, k, recall_target=recall_target, reduction_input_size_override=self.num_rows
            )
            return None, (scores, shard.start + places)

        _, (scores, rows) = self._scan(search_chunk, None, chunk)
        return best(k, _side_by_side(scores), _side_by_side(rows))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _log_normalizer(queries: jax.Array, table: Table, chunk_size: int) -> jax.Array:
    return _log_normalizer_forward(queries, table, chunk_size)[0]


def _log_normalizer_forward(queries: jax.Array, table: Table, chunk_size: int) -> tuple[Any, Any]:
    everyone = table._from_all(queries)
    chunk = _even_chunk(len(table.values), chunk_size)

    def add_chunk(carry: tuple[jax.Array, ...], start: jax.Array) -> tuple[Any, None]:
        largest, total = carry
        logits, _ = table._logits(everyone, start, chunk)
        new_largest = jnp.maximum(largest, logits.max(axis=1))
        total = total * jnp.exp(largest - new_largest)
        total += jnp.exp(logits - new_largest[:, None]).sum(axis=1)
        return (new_largest, total), None

    # Finite, so that a device whose rows are all padding gives zero and not NaN.
    lowest = jnp.full(len(everyone), jnp.finfo(jnp.float32).min)
    (largest, total), _ = table._scan(add_chunk, (lowest, jnp.zeros_like(lowest)), chunk)
    if table.axis_name is not None:
        # The largest logit is only a shift; no gradient passes here, this being the forward rule.
        shift = lax.pmax(largest, table.axis_name)
        total = lax.psum(total * jnp.exp(largest - shift), table.axis_name)
        largest = shift
    normalizer = largest + jnp.log(total)
    own = normalizer
    if table.axis_name is not None:
        first = lax.axis_index(table.axis_name) * len(queries)
        own = lax.dynamic_slice_in_dim(normalizer, first, len(queries))
    return own, (everyone, table, normalizer)


def _log_normalizer_backward(
    chunk_size: int, residuals: tuple[Any, ...], cotangent: jax.Array
) -> tuple[jax.Array, None]:
    everyone, table, normalizer = residuals
    weight = table._from_all(cotangent)
    chunk = _even_chunk(len(table.values), chunk_size)

    def add_chunk(gradient: jax.Array, start: jax.Array) -> tuple[jax.Array, None]:
        logits, shard = table._logits(everyone, start, chunk)
        probability = jnp.exp(logits - normalizer[:, None]) * weight[:, None]
        if shard.scale is not None:
            probability = probability * shard.scale
        return gradient + probability @ shard.values, None

    gradient, _ = table._scan(add_chunk, jnp.zeros_like(everyone), chunk)
    if table.axis_name is not None:
        gradient = lax.psum_scatter(gradient, table.axis_name, tiled=True)
    return gradient, None


_log_normalizer.defvjp(_log_normalizer_forward, _log_normalizer_backward)


def best(k: int, scores: jax.Array, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the k best of results [Q, n] whose equal scores are in the order of rows."""
    scores, order = lax.top_k(scores, k)
    return scores, jnp.take_along_axis(rows, order, axis=1)


def _side_by_side(results: jax.Array) -> jax.Array:
    """Joins results side by side: [N, Q, n] -> [Q, N * n]."""
    return results.swapaxes(0, 1).reshape(results.shape[1], -1)


def _even_chunk(rows: int, at_most: int, multiple: int = 1) -> int:
    """Returns the rows of each of several equal chunks, so that the last is not mostly padding.

    Args:
      rows: number of rows to divide.
      at_most: largest number of rows of a chunk, before rounding up to a multiple of `multiple`.
      multiple: number that the size of a chunk is a multiple of.
    """
    return _round_up(-(-rows // -(-rows // at_most)), multiple)


def converted(values: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Converts numbers to float32 or bfloat16; uint16 are the bit patterns of bfloat16."""
    if values.dtype != jnp.uint16:
        return values.astype(dtype)
    if dtype == jnp.bfloat16:
        return lax.bitcast_convert_type(values, jnp.bfloat16)
    return lax.bitcast_convert_type(values.astype(jnp.uint32) << 16, jnp.float32)


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
