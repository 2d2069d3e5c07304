"""The mention-detection loss."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from elq_jax.losses.base import Sums
from elq_jax.model import spans


def span_loss(span_logits: jax.Array, gold_bounds: jax.Array, gold_mask: jax.Array) -> Sums:
    """Computes the binary cross-entropy over all valid spans, pooled over the batch.

    Args:
      span_logits: [B, T, T] float32, -inf where no span. Rows of padding examples are all -inf.
      gold_bounds: [B, M, 2] int32, inclusive.
      gold_mask: [B, M] bool.

    Returns:
      sum over valid spans and their number.
    """
    valid_mask = jnp.isfinite(span_logits)
    targets = spans.span_targets(gold_bounds, gold_mask, span_logits.shape[1])
    losses = optax.sigmoid_binary_cross_entropy(jnp.where(valid_mask, span_logits, 0.0), targets)
    return jnp.sum(losses, where=valid_mask), jnp.sum(valid_mask).astype(jnp.float32)
