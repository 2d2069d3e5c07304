"""Scores all candidate mentions of a question on a grid of spans, and finds the best.

A span [i, j] (both ends inclusive) is a cell of an n x n grid, n = T. A cell is valid when
  1. i <= j,
  2. j - i < max_width,
  3. every token i..j is real.
The order of the flattened grid (start, then end) is the order of the original's enumeration.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def valid_spans(mask: jax.Array, max_width: int) -> jax.Array:
    """Returns which cells of the grid are spans.

    Args:
      mask: [B, T] bool, True = real token.
      max_width: largest number of tokens of a mention. The original's `max_mention_length` X
        allows X + 1 tokens, so max_width = X + 1.

    Returns:
      [B, T, T] bool.
    """
    position = jnp.arange(mask.shape[1])
    width = position[None, :] - position[:, None] + 1
    fits = (width >= 1) & (width <= max_width)
    padding = jnp.cumsum(~mask, axis=1)
    # Padding tokens in i..j: prefix count up to j, less the prefix count up to i, plus token i.
    holes = padding[:, None, :] - padding[:, :, None] + (~mask)[:, :, None]
    return fits & (holes == 0)


def span_logits(token_logits: jax.Array, mask: jax.Array, max_width: int) -> jax.Array:
    """Computes s(i, j) = start(i) + end(j) + sum of inside(i..j) (Li et al., 2020, equation 1).

    Args:
      token_logits: [B, T, 3] float32, columns start, end, inside.
      mask: [B, T] bool.
      max_width: largest number of tokens, as for `valid_spans`.

    Returns:
      [B, T, T] float32 logits, -inf where no span.
    """
    token_logits = jnp.where(mask[..., None], token_logits, 0.0)
    start, end, inside = jnp.moveaxis(token_logits, -1, 0)
    prefix = jnp.cumsum(inside, axis=1)
    before = prefix - inside
    logits = start[:, :, None] + end[:, None, :] + prefix[:, None, :] - before[:, :, None]
    return jnp.where(valid_spans(mask, max_width), logits, -jnp.inf)


def span_targets(gold_bounds: jax.Array, gold_mask: jax.Array, length: int) -> jax.Array:
    """Marks gold mentions, or any other spans, on the grid.

    Args:
      gold_bounds: [B, M, 2] int32, inclusive token positions.
      gold_mask: [B, M] bool.
      length: T.

    Returns:
      [B, T, T] bool, True at the cells of these spans.
    """
    position = jnp.arange(length)
    is_start = (gold_bounds[..., 0, None] == position) & gold_mask[..., None]
    is_end = gold_bounds[..., 1, None] == position
    return jnp.any(is_start[..., :, None] & is_end[..., None, :], axis=1)


def prune(
    logits: jax.Array, k: int, threshold: jax.Array | float, keep_any: bool = True
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Finds the K best spans above a threshold, in order of (start, end), left-aligned.

    Args:
      logits: [B, T, T] float32 span logits, -inf where no span.
      k: K, at most T * T.
      threshold: number that log sigmoid(logit) must exceed.
      keep_any: whether a question whose spans all fail keeps its K best (as in the original).

    Returns:
      logits [B, K] float32 (-inf where empty), bounds [B, K, 2] int32 inclusive (0 where empty),
      mask [B, K] bool.
    """
    batch, length, _ = logits.shape
    top_logits, cells = jax.lax.top_k(logits.reshape(batch, length * length), k)
    finite = jnp.isfinite(top_logits)
    keep = finite & (jax.nn.log_sigmoid(top_logits) > threshold)
    if keep_any:
        keep = jnp.where(jnp.any(keep, axis=1, keepdims=True), keep, finite)
    order = jnp.argsort(jnp.where(keep, cells, length * length), axis=1)
    mask = jnp.take_along_axis(keep, order, axis=1)
    cells = jnp.where(mask, jnp.take_along_axis(cells, order, axis=1), 0)
    logits = jnp.where(mask, jnp.take_along_axis(top_logits, order, axis=1), -jnp.inf)
    bounds = jnp.stack([cells // length, cells % length], axis=-1)
    return logits, bounds.astype(jnp.int32), mask


def span_means(hidden: jax.Array, bounds: jax.Array) -> jax.Array:
    """Computes the mean hidden state of each span.

    Args:
      hidden: [B, T, D] float32.
      bounds: [B, K, 2] int32, inclusive.

    Returns:
      [B, K, D] float32.
    """
    position = jnp.arange(hidden.shape[1])
    inside = (position >= bounds[..., :1]) & (position <= bounds[..., 1:])
    weights = inside / jnp.maximum(inside.sum(-1, keepdims=True), 1)
    return jnp.einsum("bkt,btd->bkd", weights, hidden, precision=jax.lax.Precision.HIGHEST)


def span_ends(hidden: jax.Array, bounds: jax.Array) -> jax.Array:
    """Returns the hidden states of each span's first and last token, [B, K, 2, D]."""
    batch, count, _ = bounds.shape
    flat = jnp.take_along_axis(hidden, bounds.reshape(batch, 2 * count, 1), axis=1)
    return flat.reshape(batch, count, 2, hidden.shape[-1])
