"""Computes the linking loss of the softmax over all entities of the catalogue."""

from __future__ import annotations

import dataclasses
from typing import Annotated, ClassVar

import msgspec

from elq_jax.losses.base import LINKING_LOSSES, Entities, LinkingLoss, Mentions, Sums
from elq_jax.losses.in_batch import negative_log_likelihood


@LINKING_LOSSES.register("full_catalogue")
@dataclasses.dataclass(frozen=True)
class FullCatalogue(LinkingLoss):
    """Cross-entropy of the exact softmax over the whole catalogue, -log p(e | [i, j]).

    Attributes:
      chunk_size: number of entities scored at a time; memory is Q * chunk_size floats.
    """

    needs_catalogue: ClassVar[bool] = True

    chunk_size: Annotated[int, msgspec.Meta(ge=1)] = 16384

    def __call__(self, mentions: Mentions, entities: Entities) -> Sums:
        """Returns the sum over real mentions and their number; no gradient for the entities."""
        normalizer = entities.log_normalizer(mentions, self.chunk_size)
        return negative_log_likelihood(mentions, entities.gold(mentions), normalizer)

    def flops(
        self, mentions: int, width: int, num_entities: int | None, num_negatives: int = 0
    ) -> float:
        """Counts the logits and the expected entity vectors.

        The program computes the logits a second time in the backward pass, which is not counted.
        """
        return 4.0 * mentions * (num_entities or 0) * width
