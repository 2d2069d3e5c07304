"""Losses of joint training. Every loss returns a sum and a count, so that a mean over devices is
`psum(sum) / psum(count)`; with `axis_name` the catalogue or the batch is spread over devices.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from elq_jax.model import spans

Sums = tuple[jax.Array, jax.Array]


def span_loss(span_logits: jax.Array, gold_bounds: jax.Array, gold_mask: jax.Array) -> Sums:
    """Binary cross-entropy over all valid spans, pooled over the batch.

    Args:
      span_logits: [B, T, T] float32, -inf where no span. Rows of padding examples are all -inf.
      gold_bounds: [B, M, 2] int32, inclusive.
      gold_mask: [B, M] bool.

    Returns:
      sum over valid spans and their number.
    """
    valid = jnp.isfinite(span_logits)
    targets = spans.span_targets(gold_bounds, gold_mask, span_logits.shape[1])
    losses = _sigmoid_cross_entropy(jnp.where(valid, span_logits, 0.0), targets)
    return jnp.sum(losses, where=valid), jnp.sum(valid).astype(jnp.float32)


def in_batch_loss(
    queries: jax.Array,
    entities: jax.Array,
    rows: jax.Array,
    mask: jax.Array,
    axis_name: str | None = None,
    mask_duplicates: bool = True,
) -> Sums:
    """Softmax cross-entropy against the gold entities of the whole batch.

    Args:
      queries: [Q, D] mention vectors, Q = B * M.
      entities: [Q, D] vectors of their gold entities.
      rows: [Q] int32 gold rows.
      mask: [Q] bool.
      axis_name: devices that share the batch; the negatives come from all of them.
      mask_duplicates: leave out other copies of a mention's own gold entity. The original keeps
        them as negatives.

    Returns:
      sum over real mentions and their number.
    """
    logits, _ = _in_batch_logits(queries, entities, rows, mask, axis_name, mask_duplicates)
    gold = jnp.einsum("qd,qd->q", queries, entities)
    losses = jax.nn.logsumexp(logits, axis=1) - gold
    return jnp.sum(losses, where=mask), jnp.sum(mask).astype(jnp.float32)


def hard_negatives_loss(
    queries: jax.Array,
    entities: jax.Array,
    rows: jax.Array,
    mask: jax.Array,
    negatives: jax.Array,
    negative_rows: jax.Array,
    axis_name: str | None = None,
) -> Sums:
    """Softmax cross-entropy against the batch's gold entities and each mention's mined negatives.

    An entity counts once for a mention: one that was mined and is a gold entity of the batch, its
    own or another mention's, counts as that.

    Args:
      queries, entities, rows, mask, axis_name: as for `in_batch_loss`.
      negatives: [Q, N, D] vectors of mined entities.
      negative_rows: [Q, N] int32, their rows, no row twice; -1 where there is none.

    Returns:
      sum over real mentions and their number.
    """
    logits, pool_rows = _in_batch_logits(queries, entities, rows, mask, axis_name, True)
    is_pooled = jnp.any(negative_rows[..., None] == pool_rows, axis=-1)
    mined = jnp.einsum("qd,qnd->qn", queries, negatives)
    mined = jnp.where((negative_rows >= 0) & ~is_pooled & mask[:, None], mined, -jnp.inf)
    gold = jnp.einsum("qd,qd->q", queries, entities)
    losses = jax.nn.logsumexp(jnp.concatenate([logits, mined], axis=1), axis=1) - gold
    return jnp.sum(losses, where=mask), jnp.sum(mask).astype(jnp.float32)


def hard_negatives_bce_loss(
    queries: jax.Array,
    entities: jax.Array,
    mask: jax.Array,
    negatives: jax.Array,
    negative_mask: jax.Array,
) -> Sums:
    """The original's loss on mined negatives: binary cross-entropy over all pairs of the batch.

    A rank n of an example counts only if it is a negative for all mentions of the example, as in
    the original, which drops the whole rank otherwise.

    Args:
      queries: [B, M, D].
      entities: [B, M, D].
      mask: [B, M] bool.
      negatives: [B, M, N, D].
      negative_mask: [B, M, N] bool, False where a mined entity is the gold one.

    Returns:
      sum over pairs and their number.
    """
    usable = jnp.all(negative_mask | ~mask[..., None], axis=1, keepdims=True) & mask[..., None]
    positive = jnp.einsum("bmd,bmd->bm", queries, entities)
    negative = jnp.einsum("bmd,bmnd->bmn", queries, negatives)
    total = jnp.sum(_sigmoid_cross_entropy(positive, True), where=mask)
    total += jnp.sum(_sigmoid_cross_entropy(negative, False), where=usable)
    return total, (jnp.sum(mask) + jnp.sum(usable)).astype(jnp.float32)


def full_catalogue_loss(
    queries: jax.Array,
    entities: jax.Array,
    mask: jax.Array,
    table: jax.Array,
    num_rows: int,
    *,
    scale: jax.Array | None = None,
    chunk_size: int = 16384,
    axis_name: str | None = None,
) -> Sums:
    """Cross-entropy of the exact softmax over the whole catalogue, -log p(e | [i, j]).

    Args:
      queries: [Q, D] mention vectors.
      entities: [Q, D] vectors of their gold entities.
      mask: [Q] bool.
      table: [E_local, D] this device's rows of the frozen embeddings; row r of device d is row
        d * E_local + r of the catalogue.
      num_rows: E; rows from there on are padding.
      scale: [E_local] factor of each row of an int8 table.
      chunk_size: rows scored at a time; memory is Q * chunk_size floats.
      axis_name: devices that share the table.

    Returns:
      sum over real mentions and their number. No gradient flows to the table.
    """
    if scale is None:
        scale = jnp.ones(table.shape[0], jnp.float32)
    normalizer = _log_normalizer(queries, table, scale, num_rows, chunk_size, axis_name)
    losses = normalizer - jnp.einsum("qd,qd->q", queries, entities)
    return jnp.sum(losses, where=mask), jnp.sum(mask).astype(jnp.float32)


def _sigmoid_cross_entropy(logits: jax.Array, targets: jax.Array | bool) -> jax.Array:
    return jax.nn.softplus(logits) - jnp.where(targets, logits, 0.0)


def _in_batch_logits(
    queries, entities, rows, mask, axis_name, mask_duplicates
) -> tuple[jax.Array, jax.Array]:
    """Logits [Q, Q_global] of this device's mentions against all gold entities of the batch.

    Also the rows of those entities, [Q_global], -1 at padding.
    """
    own = jnp.arange(queries.shape[0])
    if axis_name is None:
        pool, pool_rows, pool_mask = entities, rows, mask
    else:
        gather = functools.partial(jax.lax.all_gather, axis_name=axis_name, tiled=True)
        pool, pool_rows, pool_mask = gather(entities), gather(rows), gather(mask)
        own = own + jax.lax.axis_index(axis_name) * queries.shape[0]
    is_own = own[:, None] == jnp.arange(pool.shape[0])
    allowed = is_own | pool_mask
    if mask_duplicates:
        allowed &= is_own | (rows[:, None] != pool_rows)
    logits = jnp.where(allowed, queries @ pool.T, -jnp.inf)
    return logits, jnp.where(pool_mask, pool_rows, -1)


# log sum_e exp(q . e) over a table that may be spread over devices. The custom gradient
# (the expected entity vector under the softmax) recomputes the logits chunk by chunk, so neither
# pass holds [Q, E].


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _log_normalizer(queries, table, scale, num_rows, chunk_size, axis_name):
    return _log_normalizer_forward(queries, table, scale, num_rows, chunk_size, axis_name)[0]


def _log_normalizer_forward(queries, table, scale, num_rows, chunk_size, axis_name):
    everyone = _all_gather(queries, axis_name)

    def add_chunk(carry, chunk):
        largest, total = carry
        logits, _ = _chunk_logits(everyone, chunk)
        new_largest = jnp.maximum(largest, logits.max(axis=1))
        total = total * jnp.exp(largest - new_largest)
        total += jnp.exp(logits - new_largest[:, None]).sum(axis=1)
        return new_largest, total

    # Finite, so that a device whose rows are all padding gives zero and not NaN.
    lowest = jnp.full(everyone.shape[0], jnp.finfo(jnp.float32).min)
    initial = (lowest, jnp.zeros_like(lowest))
    largest, total = _over_chunks(add_chunk, initial, table, scale, num_rows, chunk_size, axis_name)
    if axis_name is not None:
        # The largest logit is only a shift; no gradient passes here, this being the forward rule.
        shift = jax.lax.pmax(largest, axis_name)
        total = jax.lax.psum(total * jnp.exp(largest - shift), axis_name)
        largest = shift
    normalizer = largest + jnp.log(total)
    own = _own_part(normalizer, queries.shape[0], axis_name)
    return own, (everyone, table, scale, normalizer)


def _log_normalizer_backward(num_rows, chunk_size, axis_name, residuals, cotangent):
    everyone, table, scale, normalizer = residuals
    weight = _all_gather(cotangent, axis_name)

    def add_chunk(gradient, chunk):
        logits, vectors = _chunk_logits(everyone, chunk)
        probability = jnp.exp(logits - normalizer[:, None]) * weight[:, None]
        return gradient + (probability * chunk.scale) @ vectors

    gradient = _over_chunks(
        add_chunk, jnp.zeros_like(everyone), table, scale, num_rows, chunk_size, axis_name
    )
    if axis_name is not None:
        gradient = jax.lax.psum_scatter(gradient, axis_name, tiled=True)
    return gradient, None, None


_log_normalizer.defvjp(_log_normalizer_forward, _log_normalizer_backward)


class _Chunk:
    """Consecutive rows of a table: vectors [C, D], scale [C], valid [C]."""

    def __init__(self, vectors: jax.Array, scale: jax.Array, valid: jax.Array):
        self.vectors, self.scale, self.valid = vectors, scale, valid


def _chunk_logits(queries: jax.Array, chunk: _Chunk) -> tuple[jax.Array, jax.Array]:
    """Logits [Q, C] of a chunk, -inf at rows that do not count, and its vectors as float32."""
    vectors = chunk.vectors.astype(jnp.float32)
    logits = (queries @ vectors.T) * chunk.scale
    return jnp.where(chunk.valid, logits, -jnp.inf), vectors


def _over_chunks(function, carry, table, scale, num_rows, chunk_size, axis_name):
    """Folds `function(carry, chunk)` over the table; the last chunk overlaps the one before."""
    local_rows = table.shape[0]
    chunk_size = min(chunk_size, local_rows)
    offset = 0 if axis_name is None else jax.lax.axis_index(axis_name) * local_rows

    def body(i, carry):
        start = jnp.minimum(i * chunk_size, local_rows - chunk_size)
        row = start + jnp.arange(chunk_size)
        valid = (row >= i * chunk_size) & (offset + row < num_rows)
        vectors = jax.lax.dynamic_slice_in_dim(table, start, chunk_size)
        scales = jax.lax.dynamic_slice_in_dim(scale, start, chunk_size)
        return function(carry, _Chunk(vectors, scales, valid))

    return jax.lax.fori_loop(0, -(-local_rows // chunk_size), body, carry)


def _all_gather(x: jax.Array, axis_name: str | None) -> jax.Array:
    return x if axis_name is None else jax.lax.all_gather(x, axis_name, tiled=True)


def _own_part(x: jax.Array, size: int, axis_name: str | None) -> jax.Array:
    if axis_name is None:
        return x
    return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(axis_name) * size, size)
