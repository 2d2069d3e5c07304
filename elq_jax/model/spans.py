"""Scores all candidate mentions of a text on a band of spans, and finds the best.

Mentions are short, so the spans of T tokens are a band of T x W cells: cell [i, w] is the span of
w + 1 tokens that begins at token i. A cell is valid when
  1. its last token i + w is one of the T tokens,
  2. every token i..i + w is real.
W is `max_width`, or T if that is smaller. The order of the flattened band (start, then width) is
the order of the original's enumeration. Elsewhere spans are bounds [i, j], both inclusive.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def band_width(length: int, max_width: int) -> int:
    """Returns W, the number of widths of spans among `length` tokens."""
    return min(length, max_width)


def at_ends(values: jax.Array, width: int) -> jax.Array:
    """Lays out values of tokens by the spans that end there.

    Args:
      values: [B, T], one of each token.
      width: W.

    Returns:
      [B, T, W], `values[:, i + w]` at [:, i, w]; zeros where i + w is no token.
    """
    length = values.shape[1]
    padded = jnp.pad(values, ((0, 0), (0, width - 1)))
    return jnp.stack([padded[:, w : w + length] for w in range(width)], axis=-1)


def valid_spans(mask: jax.Array, max_width: int) -> jax.Array:
    """Returns which cells of the band are spans.

    Args:
      mask: [B, T] bool, True = real token.
      max_width: largest number of tokens of a mention. The original's `max_mention_length` X
        allows X + 1 tokens, so max_width = X + 1.

    Returns:
      [B, T, W] bool.
    """
    width = band_width(mask.shape[1], max_width)
    # A span is one if its part without the last token is, and if that token is real.
    return jnp.cumprod(at_ends(mask.astype(jnp.int8), width), axis=-1) > 0


def span_logits(token_logits: jax.Array, mask: jax.Array, max_width: int) -> jax.Array:
    """Computes s(i, j) = start(i) + end(j) + sum of inside(i..j) (Li et al., 2020, equation 1).

    Args:
      token_logits: [B, T, 3] float32, columns start, end, inside.
      mask: [B, T] bool.
      max_width: largest number of tokens, as for `valid_spans`.

    Returns:
      [B, T, W] float32 logits, -inf where no span.
    """
    width = band_width(mask.shape[1], max_width)
    token_logits = jnp.where(mask[..., None], token_logits, 0.0)
    start, end, inside = jnp.moveaxis(token_logits, -1, 0)
    prefix = jnp.cumsum(inside, axis=1)
    before = prefix - inside
    logits = start[:, :, None] + at_ends(end, width) + at_ends(prefix, width) - before[:, :, None]
    return jnp.where(valid_spans(mask, max_width), logits, -jnp.inf)


def span_targets(
    gold_bounds: jax.Array, gold_mask: jax.Array, length: int, width: int
) -> jax.Array:
    """Marks gold mentions, or any other spans, on the band.

    Args:
      gold_bounds: [B, M, 2] int32, inclusive token positions.
      gold_mask: [B, M] bool.
      length: T.
      width: W. Wider spans are not marked.

    Returns:
      [B, T, W] bool, True at the cells of these spans.
    """
    starts, ends = gold_bounds[..., 0], gold_bounds[..., 1]
    is_start = (starts[..., None] == jnp.arange(length)) & gold_mask[..., None]
    is_width = (ends - starts)[..., None] == jnp.arange(width)
    return jnp.any(is_start[..., :, None] & is_width[..., None, :], axis=1)


def prune(
    logits: jax.Array, k: int, threshold: jax.Array | float, keep_any: bool = True
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Finds the K best spans above a threshold, in order of (start, end), left-aligned.

    Args:
      logits: [B, T, W] float32 span logits, -inf where no span.
      k: K, at most T * W.
      threshold: number that log sigmoid(logit) must exceed.
      keep_any: whether a question whose spans all fail keeps its K best (as in the original).

    Returns:
      logits [B, K] float32 (-inf where empty), bounds [B, K, 2] int32 inclusive (0 where empty),
      mask [B, K] bool.
    """
    batch, length, width = logits.shape
    top_logits, cells = jax.lax.top_k(logits.reshape(batch, length * width), k)
    finite = jnp.isfinite(top_logits)
    keep = finite & (jax.nn.log_sigmoid(top_logits) > threshold)
    if keep_any:
        keep = jnp.where(jnp.any(keep, axis=1, keepdims=True), keep, finite)
    order = jnp.argsort(jnp.where(keep, cells, length * width), axis=1)
    mask = jnp.take_along_axis(keep, order, axis=1)
    cells = jnp.where(mask, jnp.take_along_axis(cells, order, axis=1), 0)
    logits = jnp.where(mask, jnp.take_along_axis(top_logits, order, axis=1), -jnp.inf)
    starts = cells // width
    bounds = jnp.stack([starts, starts + cells % width], axis=-1)
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
