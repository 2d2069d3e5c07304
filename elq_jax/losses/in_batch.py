"""Computes the linking loss of the softmax over the gold entities of the batch."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from elq_jax.losses.base import LINKING_LOSSES, Entities, LinkingLoss, Mentions, Sums


@LINKING_LOSSES.register("in_batch")
@dataclasses.dataclass(frozen=True)
class InBatch(LinkingLoss):
    """Cross-entropy of the softmax over the gold entities of the whole batch.

    Attributes:
      mask_duplicates: whether other copies of a mention's own gold entity are left out. The
        original keeps them as negatives.
    """

    mask_duplicates: bool = True

    def __call__(self, mentions: Mentions, entities: Entities) -> Sums:
        """Returns the sum over real mentions and their number; negatives are of all devices."""
        gold = entities.gold(mentions)
        logits, _ = in_batch_logits(mentions, gold, self.mask_duplicates)
        return cross_entropy(mentions, gold, logits)

    def flops(
        self, mentions: int, width: int, num_entities: int | None, num_negatives: int = 0
    ) -> float:
        """Counts the logits and their gradients, whatever `num_negatives` is."""
        passes = 3 if num_entities is None else 2
        return 2.0 * passes * mentions**2 * width


def in_batch_logits(
    mentions: Mentions, gold: jax.Array, mask_duplicates: bool
) -> tuple[jax.Array, jax.Array]:
    """Scores mentions against the gold entities of the batch.

    An entry counts if it is
      1. the mention's own gold entity, or
      2. of a real mention and, with `mask_duplicates`, not another copy of the own gold entity.

    Args:
      mentions: Q mentions on this device.
      gold: [Q, D] vectors of their gold entities.
      mask_duplicates: whether copies are left out, see `InBatch`.

    Returns:
      logits [Q, P * Q] of this device's mentions, -inf where an entry does not count, and the rows
      of the entities, [P * Q], -1 at padding.
    """
    rows, own = mentions.rows, jnp.arange(len(gold))
    pool, pool_rows, pool_mask = gold, rows, mentions.mask
    if mentions.axis_name is not None:
        gather = functools.partial(jax.lax.all_gather, axis_name=mentions.axis_name, tiled=True)
        pool, pool_rows, pool_mask = gather(gold), gather(rows), gather(mentions.mask)
        own = own + jax.lax.axis_index(mentions.axis_name) * len(gold)
    own_mask = own[:, None] == jnp.arange(len(pool))
    allowed_mask = own_mask | pool_mask
    if mask_duplicates:
        allowed_mask &= own_mask | (rows[:, None] != pool_rows)
    logits = jnp.where(allowed_mask, mentions.vectors @ pool.T, -jnp.inf)
    return logits, jnp.where(pool_mask, pool_rows, -1)


def cross_entropy(mentions: Mentions, gold: jax.Array, logits: jax.Array) -> Sums:
    """Sums the cross-entropies of softmaxes over logits [Q, n], gold entities among them."""
    return negative_log_likelihood(mentions, gold, jax.nn.logsumexp(logits, axis=1))


def negative_log_likelihood(mentions: Mentions, gold: jax.Array, normalizer: jax.Array) -> Sums:
    """Sums -log p of the gold entities [Q, D], given the log of each softmax's denominator [Q]."""
    losses = normalizer - jnp.einsum("qd,qd->q", mentions.vectors, gold)
    return jnp.sum(losses, where=mentions.mask), jnp.sum(mentions.mask).astype(jnp.float32)
