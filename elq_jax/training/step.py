"""Takes one training step: forward, loss, gradient, update. The body of `devices.parallel`.

Sums and counts are added over devices before anything is divided, so that any number of devices
takes the same step.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from elq_jax.core import devices as devices_lib
from elq_jax.core.devices import AXIS
from elq_jax.core.errors import ElqError
from elq_jax.losses import Entities, LinkingLoss, Mentions, create_linking_loss, span_loss
from elq_jax.model import flops
from elq_jax.model.config import ElqConfig
from elq_jax.model.elq import EntityEncoder, QuestionEncoder
from elq_jax.retrieval.table import Table
from elq_jax.training.optimizer import TrainState

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Objective:
    """Describes the loss that a training step minimises, and how it is computed.

    Attributes:
      model: configuration of the encoders.
      linking_loss: loss of linking gold mentions, see `elq_jax.losses`.
      span_loss_weight: factor of the mention-detection loss.
      dtype: type of the matrix products, "float32" or "bfloat16".
      remat: whether activations are recomputed in the backward pass.
    """

    model: ElqConfig
    linking_loss: LinkingLoss
    span_loss_weight: float = 1.0
    dtype: str = "float32"
    remat: bool = False

    @classmethod
    def of_stage(cls, model: ElqConfig, stage: Mapping[str, Any], dtype: str) -> Objective:
        """Makes the objective that a stage of a configuration asks for.

        Args:
          model: configuration of the encoders.
          stage: section of the stage.
          dtype: type of the matrix products, "float32" or "bfloat16".

        Raises:
          ElqError: there is no such linking loss, or a setting of it cannot be used.
        """
        loss = create_linking_loss(stage)
        return cls(model, loss, stage["span_loss_weight"], dtype, stage["remat"])


def train_step(
    objective: Objective,
    state: TrainState,
    batch: Batch,
    table: Table | None,
    seed: jax.Array,
    num_queries: int,
    deterministic: bool = False,
) -> tuple[TrainState, Metrics]:
    """Takes one step on this device's part of a batch, together with all other devices.

    Args:
      objective: loss to minimise.
      state: training state. With a table, `state.params` is the tree of the question encoder, which
        alone learns; without, {"question": tree, "entity": tree}.
      batch: batch of `TrainingBatches`. Without a table it also has `entity_ids` and `entity_mask`
        [B, M, 1 + N, T_e], the gold entity of each mention and N mined ones, and, for N > 0,
        `negative_rows` [B, M, N].
      table: frozen vectors of all entities, spread over the devices; None: the entities of the
        batch are encoded in the step.
      seed: int32 scalar, seed of the run.
      num_queries: Q, largest number of gold mentions on a device, static; mentions are packed into
        Q places, so that little padding is searched for.
      deterministic: whether the step is without dropout, static.

    Returns:
      the state after the step, and loss, span_loss, linking_loss (means over all devices) and the
      gradient's norm.
    """
    # Every device draws its own dropout, every step another.
    # "rbg" compiles and runs several times faster than the default where dropout is drawn.
    key = jax.random.key(seed, impl="rbg")
    key = jax.random.fold_in(jax.random.fold_in(key, state.step), jax.lax.axis_index(AXIS))
    dtype, remat = jnp.dtype(objective.dtype), objective.remat

    def loss_part(params: Any) -> tuple[jax.Array, Metrics]:
        """Returns this device's part of the mean loss over all devices."""
        span_logits, vectors = QuestionEncoder(objective.model, dtype, remat).apply(
            {"params": params["question"] if table is None else params},
            *(batch["input_ids"], batch["mask"], batch["gold_bounds"]),
            deterministic=deterministic,
            method="encode_mentions",
            rngs={"dropout": key},
        )
        mentions, select = gold_mentions(vectors, batch, num_queries)
        if table is None:
            tokens = select(batch["entity_ids"]), select(batch["entity_mask"])
            vectors = EntityEncoder(objective.model, dtype, remat).apply(
                {"params": params["entity"]},
                *(array.reshape(-1, array.shape[-1]) for array in tokens),
                deterministic=deterministic,
                rngs={"dropout": jax.random.fold_in(key, 1)},
            )
            rows = select(batch["negative_rows"]) if "negative_rows" in batch else None
            entities = EncodedEntities(vectors.reshape(*tokens[0].shape[:2], -1), rows)
        else:
            entities = FrozenEntities(table)
        neutral = batch.get("neutral_bounds"), batch.get("neutral_mask")
        span = _mean(span_loss(span_logits, batch["gold_bounds"], batch["gold_mask"], *neutral))
        linking = _mean(objective.linking_loss(mentions, entities))
        total = objective.span_loss_weight * span + linking
        return total, {"loss": total, "span_loss": span, "linking_loss": linking}

    grads, metrics = jax.grad(loss_part, has_aux=True)(state.params)
    grads, metrics = devices_lib.sum_over_devices((grads, metrics))
    state = state.apply_gradients(grads)
    # An optimiser that clips other gradients than these reports their norm in its state.
    metrics["grad_norm"] = optax.tree.get(state.opt_state, "grad_norm", optax.tree.norm(grads))
    return state, metrics


def parallel_train_step(
    objective: Objective, devices: Sequence[jax.Device]
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Compiles `train_step` for devices: a function of its arguments after the first.

    The memory of the state in its arguments is used again for the state that it returns.
    """
    step = functools.partial(train_step, objective)
    return devices_lib.parallel(
        step, devices, replicated=(0, 3), returns_replicated=True, donate=0, static=(4, 5)
    )


def gold_mentions(
    vectors: jax.Array, batch: Batch, num_queries: int
) -> tuple[Mentions, Callable[[jax.Array], jax.Array]]:
    """Brings the mentions of a device's batch that have an entity to the front, cut to [Q].

    Args:
      vectors: [B, M, D] mention vectors.
      batch: batch of the device.
      num_queries: Q, number of mentions to return.

    Returns:
      the mentions, and a function that packs any array the same way: [B, M, ...] -> [Q, ...].
    """
    linkable_mask = batch["gold_mask"] & (batch["gold_rows"] >= 0)
    order = jnp.argsort(~linkable_mask.reshape(-1), stable=True)[:num_queries]

    def select(array: jax.Array) -> jax.Array:
        return array.reshape(-1, *array.shape[2:])[order]

    mask = select(linkable_mask)
    num_questions, most = linkable_mask.shape
    return Mentions(
        select(vectors),
        jnp.where(mask, select(batch["gold_rows"]), 0),
        mask,
        order // most,
        num_questions,
        AXIS,
    ), select


class FrozenEntities(Entities):
    """Gives all entities of the catalogue by their frozen vectors.

    Args:
      table: table of the vectors.
    """

    def __init__(self, table: Table):
        self._table = table

    def gold(self, mentions: Mentions) -> jax.Array:
        """Returns the vectors of the gold entities, see `Entities.gold`."""
        return self._table.gather(mentions.rows)

    def negatives(self, mentions: Mentions, count: int) -> tuple[jax.Array, jax.Array]:
        """Finds the entities nearest to each mention, see `Entities.negatives`."""
        queries = jax.lax.stop_gradient(mentions.vectors)
        _, rows = self._table.nearest(queries, min(count, self._table.num_rows))
        return self._table.gather(rows), rows

    def log_normalizer(self, mentions: Mentions, chunk_size: int) -> jax.Array:
        """Computes the log of the softmax's denominator, see `Entities.log_normalizer`."""
        return self._table.log_normalizer(mentions.vectors, chunk_size)


class EncodedEntities(Entities):
    """Gives the entities of a batch, which the step encodes, so that gradients flow to them.

    Args:
      vectors: [Q, 1 + N, D] vectors of each mention's gold entity and N mined entities.
      negative_rows: [Q, N] int32 rows of the mined entities, -1 for none; None for N = 0.
    """

    def __init__(self, vectors: jax.Array, negative_rows: jax.Array | None):
        self._vectors, self._negative_rows = vectors, negative_rows

    def gold(self, mentions: Mentions) -> jax.Array:
        """Returns the vectors of the gold entities, see `Entities.gold`."""
        del mentions
        return self._vectors[:, 0]

    def negatives(self, mentions: Mentions, count: int) -> tuple[jax.Array, jax.Array]:
        """Returns the mined entities of the batch, see `Entities.negatives`."""
        del mentions, count
        rows = self._negative_rows
        if rows is None:
            rows = jnp.zeros((len(self._vectors), 0), jnp.int32)
        return self._vectors[:, 1:], rows

    def log_normalizer(self, mentions: Mentions, chunk_size: int) -> jax.Array:
        """Raises an ElqError, since there are no vectors of all entities."""
        raise ElqError(
            "linking_loss: this loss needs the vectors of all entities, which change while the "
            "entity encoder learns; give hard_negatives or in_batch in bi_encoder"
        )


def train_step_flops(
    objective: Objective,
    batch_size: int,
    tokens: int,
    mentions: int,
    num_entities: int | None,
    entity_tokens: int = 0,
    num_negatives: int = 0,
) -> float:
    """Counts the floating-point operations of `train_step`, forward and backward, of all devices.

    Args:
      objective: loss of the step.
      batch_size: B, number of questions.
      tokens: T of the questions.
      mentions: Q, number of gold mentions (with their padding) of the batch.
      num_entities: E, number of frozen vectors; None where entities are encoded in the step.
      entity_tokens: T of the entities that are encoded in the step.
      num_negatives: N, number of entities encoded for each mention besides its gold entity.
    """
    encoders = flops.question_flops(objective.model, batch_size, tokens, mentions)
    if num_entities is None:
        encoded = mentions * (1 + num_negatives)
        encoders += flops.entity_flops(objective.model, encoded, entity_tokens)
    width = objective.model.vector_width
    linking = objective.linking_loss.flops(mentions, width, num_entities, num_negatives)
    return 3 * encoders + linking


def _mean(sums: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Returns this device's part of the mean over all devices, from its sum and count."""
    total, count = sums
    return total / jnp.maximum(jax.lax.psum(count, AXIS), 1)
