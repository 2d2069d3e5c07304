"""Defines the base class of linking losses, and the mentions and entities that they compare.

Every loss returns a sum and a count, so that a mean over devices is `psum(sum) / psum(count)`.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.struct
import jax

from elq_jax.core.errors import ElqError
from elq_jax.core.registry import Registry
from elq_jax.core.settings import fields_of, make_settings

Sums = tuple[jax.Array, jax.Array]


class Mentions(flax.struct.PyTreeNode):
    """Gold mentions of the questions on one device, Q places with the real mentions in front.

    Attributes:
      vectors: [Q, D] float32 mention vectors.
      rows: [Q] int32 rows of their gold entities; 0 at padding.
      mask: [Q] bool, True = a mention that is linked to an entity.
      questions: [Q] int32 number of each mention's question, 0 <= number < num_questions.
      num_questions: B, number of questions on the device.
      axis_name: name of the mapped axis of the devices that share the batch; None: there is one.
    """

    vectors: jax.Array
    rows: jax.Array
    mask: jax.Array
    questions: jax.Array
    num_questions: int = flax.struct.field(pytree_node=False)
    axis_name: str | None = flax.struct.field(pytree_node=False)


class Entities(abc.ABC):
    """Entities that mentions are compared with: frozen vectors, or entities encoded in the step."""

    @abc.abstractmethod
    def gold(self, mentions: Mentions) -> jax.Array:
        """Returns the vectors of the gold entities, [Q, D] float32."""

    @abc.abstractmethod
    def negatives(self, mentions: Mentions, count: int) -> tuple[jax.Array, jax.Array]:
        """Returns entities that the model takes for the gold ones of each mention, best first.

        The gold entity may be among them.

        Args:
          mentions: Q mentions.
          count: wanted number of entities per mention. N, the returned number, is smaller in a
            catalogue with fewer entities; a batch with mined negatives returns all of them.

        Returns:
          vectors [Q, N, D] float32, and rows [Q, N] int32, no row twice for a mention; -1 where
          there is no entity.
        """

    @abc.abstractmethod
    def log_normalizer(self, mentions: Mentions, chunk_size: int) -> jax.Array:
        """Returns log sum_e exp(q . e) over the whole catalogue, [Q] float32.

        Args:
          mentions: Q mentions.
          chunk_size: number of entities scored at a time.

        Raises:
          ElqError: there are no vectors of the whole catalogue.
        """


@dataclasses.dataclass(frozen=True)
class LinkingLoss(abc.ABC):
    """A loss of linking gold mentions to their entities.

    The fields of a subclass are its settings (see `core.settings`); a stage of a configuration
    sets them by name.

    Attributes:
      needs_catalogue: whether `Entities.log_normalizer` is called, so that the loss cannot be used
        where the entity encoder learns and no vectors of all entities are there.
    """

    needs_catalogue: ClassVar[bool] = False

    @abc.abstractmethod
    def __call__(self, mentions: Mentions, entities: Entities) -> Sums:
        """Computes the loss of this device's mentions.

        Returns:
          sum over the terms of the loss (mentions or pairs), and their number, float32 scalars.
        """

    def flops(
        self, mentions: int, width: int, num_entities: int | None, num_negatives: int = 0
    ) -> float:
        """Counts the floating-point operations of the loss and its gradient, over all devices.

        A product of [n, d] and [d, m] counts 2 n d m. Recomputation is not counted, nor are the
        few products of mentions with their gold entities. The base class returns 0: rate and MFU
        of a run are then those of the encoders alone.

        Args:
          mentions: Q, number of mentions.
          width: D, width of the vectors.
          num_entities: E, number of frozen vectors; None where the entities are encoded in the
            step, so that there is a gradient for them too.
          num_negatives: N, number of mined entities in the batch for each mention.
        """
        del mentions, width, num_entities, num_negatives
        return 0.0


LINKING_LOSSES: Registry[type[LinkingLoss]] = Registry("linking_loss", "elq_jax.losses")


def create_linking_loss(stage: Mapping[str, Any]) -> LinkingLoss:
    """Makes the linking loss of a stage of a configuration.

    Args:
      stage: section of the configuration, with the name `linking_loss` and settings of the loss.

    Raises:
      ElqError: there is no such loss, or a setting cannot be used.
    """
    loss = LINKING_LOSSES.get(stage["linking_loss"])
    try:
        return make_settings(loss, {name: stage[name] for name in fields_of(loss) if name in stage})
    except (ElqError, TypeError, ValueError) as error:
        raise ElqError(f"linking_loss {stage['linking_loss']!r}: {error}") from error
