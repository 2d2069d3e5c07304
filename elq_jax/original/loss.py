"""Computes the original's loss on mined negatives."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp
import msgspec
import optax

from elq_jax.losses.base import LINKING_LOSSES, Entities, LinkingLoss, Mentions, Sums
from elq_jax.losses.hard_negatives import mined_flops


@LINKING_LOSSES.register("hard_negatives_bce")
@dataclasses.dataclass(frozen=True)
class HardNegativesBce(LinkingLoss):
    """Binary cross-entropy over pairs of a mention with its gold entity or with a mined negative.

    The negatives of a mention are ranked 1 to N. If the negative of some rank is the gold entity
    for any mention of a question, the original drops that rank for all mentions of the question,
    and so does this loss.

    Attributes:
      num_negatives: number N of negatives mined for each mention.
    """

    num_negatives: Annotated[int, msgspec.Meta(ge=1)] = 10

    def __call__(self, mentions: Mentions, entities: Entities) -> Sums:
        """Returns the sum over pairs and their number."""
        vectors, rows = entities.negatives(mentions, self.num_negatives)
        positive = jnp.einsum("qd,qd->q", mentions.vectors, entities.gold(mentions))
        negative = jnp.einsum("qd,qnd->qn", mentions.vectors, vectors)
        mask = mentions.mask[:, None]
        gold_mask = mask & (rows == mentions.rows[:, None])
        # [B, N]: ranks at which some mention of the question has its gold entity.
        is_dropped = jax.ops.segment_max(
            gold_mask.astype(jnp.int32), mentions.questions, mentions.num_questions
        )
        pair_mask = mask & (rows >= 0) & (is_dropped[mentions.questions] <= 0)
        total = jnp.sum(_cross_entropy(positive, 1.0), where=mentions.mask)
        total += jnp.sum(_cross_entropy(negative, 0.0), where=pair_mask)
        return total, (jnp.sum(mask) + jnp.sum(pair_mask)).astype(jnp.float32)

    def flops(
        self, mentions: int, width: int, num_entities: int | None, num_negatives: int = 0
    ) -> float:
        """Counts logits, gradients, and one pass over a frozen catalogue to find the negatives."""
        count = num_negatives if num_entities is None else self.num_negatives
        return mined_flops(mentions, width, num_entities, count)


def _cross_entropy(logits: jax.Array, target: float) -> jax.Array:
    return optax.sigmoid_binary_cross_entropy(logits, jnp.full_like(logits, target))
