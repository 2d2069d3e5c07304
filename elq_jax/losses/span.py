"""Computes the loss of mention detection."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from elq_jax.losses.base import Sums
from elq_jax.model import spans


def span_loss(
    span_logits: jax.Array,
    gold_bounds: jax.Array,
    gold_mask: jax.Array,
    neutral_bounds: jax.Array | None = None,
    neutral_mask: jax.Array | None = None,
) -> Sums:
    """Computes the binary cross-entropy over the spans that count, pooled over the batch.

    A cell of the band counts if it
      1. is a valid span,
      2. is not neutral, or is a gold mention.

    Args:
      span_logits: [B, T, W] float32, -inf where no span. Rows of padding examples are all -inf.
      gold_bounds: [B, M, 2] int32, inclusive.
      gold_mask: [B, M] bool.
      neutral_bounds: [B, U, 2] int32, inclusive, of spans that may or may not be mentions; None:
        there are none.
      neutral_mask: [B, U] bool.

    Returns:
      sum over the spans that count and their number.
    """
    span_mask = jnp.isfinite(span_logits)
    band = span_logits.shape[1:]
    targets = spans.span_targets(gold_bounds, gold_mask, *band)
    if neutral_bounds is not None:
        span_mask &= targets | ~spans.span_targets(neutral_bounds, neutral_mask, *band)
    losses = optax.sigmoid_binary_cross_entropy(jnp.where(span_mask, span_logits, 0.0), targets)
    return jnp.sum(losses, where=span_mask), jnp.sum(span_mask).astype(jnp.float32)
