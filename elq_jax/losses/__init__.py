"""Holds the training losses, one file each; linking losses are found by name (`LINKING_LOSSES`).

A linking loss of your own is one file. It is used by `config.joint.linking_loss = "my_loss:margin"`
where `my_loss.py` holds

    @LINKING_LOSSES.register("margin")
    @dataclasses.dataclass(frozen=True)
    class Margin(LinkingLoss):
        margin: float = 0.2  # config.joint.margin

        def __call__(self, mentions, entities):
            gold = jnp.sum(mentions.vectors * entities.gold(mentions), axis=-1)
            vectors, rows = entities.negatives(mentions, 1)
            worst = jnp.sum(mentions.vectors * vectors[:, 0], axis=-1)
            counts = mentions.mask & (rows[:, 0] != mentions.rows)
            losses = jax.nn.relu(self.margin + worst - gold)
            return jnp.sum(losses, where=counts), jnp.sum(counts).astype(jnp.float32)
"""

from elq_jax.losses.base import (
    LINKING_LOSSES,
    Entities,
    LinkingLoss,
    Mentions,
    Sums,
    create_linking_loss,
)
from elq_jax.losses.full_catalogue import FullCatalogue
from elq_jax.losses.hard_negatives import HardNegatives
from elq_jax.losses.in_batch import InBatch
from elq_jax.losses.span import span_loss

__all__ = [
    "LINKING_LOSSES",
    "Entities",
    "FullCatalogue",
    "HardNegatives",
    "InBatch",
    "LinkingLoss",
    "Mentions",
    "Sums",
    "create_linking_loss",
    "span_loss",
]
