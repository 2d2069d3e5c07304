"""Computes the linking loss of the softmax over gold entities of the batch and mined negatives."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import jax.numpy as jnp
import msgspec

from elq_jax.losses.base import LINKING_LOSSES, Entities, LinkingLoss, Mentions, Sums
from elq_jax.losses.in_batch import InBatch, cross_entropy, in_batch_logits


@LINKING_LOSSES.register("hard_negatives")
@dataclasses.dataclass(frozen=True)
class HardNegatives(LinkingLoss):
    """Cross-entropy of the softmax over the batch's gold entities and each mention's negatives.

    An entity counts once for a mention: a mined negative that is also a gold entity of the batch is
    left out. Without negatives the loss is that of `InBatch`.

    Attributes:
      num_negatives: number N of negatives mined per mention.
    """

    num_negatives: Annotated[int, msgspec.Meta(ge=1)] = 10

    def __call__(self, mentions: Mentions, entities: Entities) -> Sums:
        """Returns the sum over real mentions and their number; gold entities are of all devices."""
        gold = entities.gold(mentions)
        logits, pool_rows = in_batch_logits(mentions, gold, mask_duplicates=True)
        vectors, rows = entities.negatives(mentions, self.num_negatives)
        # A mined entity counts if it
        #   1. exists,
        #   2. is no gold entity of the batch,
        #   3. belongs to a real mention.
        counts_mask = (rows >= 0) & ~jnp.any(rows[..., None] == pool_rows, axis=-1)
        counts_mask &= mentions.mask[:, None]
        mined = jnp.einsum("qd,qnd->qn", mentions.vectors, vectors)
        mined = jnp.where(counts_mask, mined, -jnp.inf)
        return cross_entropy(mentions, gold, jnp.concatenate([logits, mined], axis=1))

    def flops(
        self, mentions: int, width: int, num_entities: int | None, num_negatives: int = 0
    ) -> float:
        """Counts logits, gradients, and one pass over a frozen catalogue to find the negatives."""
        in_batch = InBatch().flops(mentions, width, num_entities)
        if num_entities is None:
            return in_batch + mined_flops(mentions, width, None, num_negatives)
        return in_batch + mined_flops(mentions, width, num_entities, self.num_negatives)


def mined_flops(mentions: int, width: int, num_entities: int | None, num_negatives: int) -> float:
    """Counts the products of mentions with N negatives each, and with all entities to find these.

    Args:
      mentions: Q, number of mentions.
      width: D, width of the vectors.
      num_entities: E, number of frozen vectors; None where the batch has mined negatives.
      num_negatives: N, number of negatives per mention.
    """
    if num_entities is None:
        return 6.0 * mentions * num_negatives * width
    scored = min(num_negatives, num_entities)
    return 2.0 * mentions * num_entities * width + 4.0 * mentions * scored * width
