"""One training step of each stage: loss, gradient, update. Bodies for `devices.parallel`.

Sums and counts are added over devices before anything is divided, so that any number of devices
takes the same step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from elq_jax.core.devices import AXIS
from elq_jax.core.errors import ElqError
from elq_jax.model import losses
from elq_jax.model.elq import ElqConfig, EntityEncoder, QuestionEncoder
from elq_jax.retrieval import exact
from elq_jax.retrieval.exact import Table
from elq_jax.training.optimizer import TrainState

LINKING_LOSSES = ("in_batch", "hard_negatives_bce", "hard_negatives", "full_catalogue")
Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """What is minimised.

    Attributes:
      linking_loss: one of `LINKING_LOSSES`.
      span_loss_weight: factor of the mention-detection loss.
      num_negatives: N, mined per mention by the hard-negative losses.
      chunk_size: rows of the table scored at a time.
      mask_duplicates: in_batch leaves out other copies of a mention's own gold entity.
    """

    linking_loss: str = "full_catalogue"
    span_loss_weight: float = 1.0
    num_negatives: int = 10
    chunk_size: int = 16384
    mask_duplicates: bool = True

    def __post_init__(self):
        if self.linking_loss not in LINKING_LOSSES:
            raise ValueError(
                f"linking_loss: {self.linking_loss!r}; expected one of {', '.join(LINKING_LOSSES)}"
            )


def loss_config(stage: Mapping[str, Any]) -> LossConfig:
    """What a stage of a configuration minimises.

    Raises:
      ElqError: the name of the linking loss is none.
    """
    names = [field.name for field in dataclasses.fields(LossConfig)]
    try:
        return LossConfig(**{name: stage[name] for name in names if name in stage})
    except ValueError as error:
        raise ElqError(str(error)) from error


def joint_train_step(
    config: ElqConfig, loss: LossConfig, dtype: str = "float32", remat: bool = False
) -> Callable[..., tuple[TrainState, Metrics]]:
    """The step of the joint stage: the question encoder learns against frozen entity vectors.

    Returns:
      step(state, batch, table, seed, num_queries, deterministic=False) -> (state, metrics):
      `state.params` is the tree of the question encoder; `batch` is this device's part of a batch
      of `data.batches`; `table` its part of the embeddings; `seed` (int32) the run's;
      `num_queries` (static) an upper bound of the gold mentions of a device's part, which keeps
      padding out of the search; `deterministic` (static) is without dropout.
    """
    encoder = QuestionEncoder(config, jnp.dtype(dtype), remat)

    def losses_of(params, batch, table, key, num_queries, deterministic):
        span_logits, vectors = encoder.apply(
            {"params": params},
            batch["input_ids"],
            batch["mask"],
            batch["gold_bounds"],
            deterministic=deterministic,
            method="encode_mentions",
            rngs={"dropout": key},
        )
        span = losses.span_loss(span_logits, batch["gold_bounds"], batch["gold_mask"])
        return span, _linking_loss(loss, vectors, batch, table, num_queries)

    return _train_step(losses_of, loss.span_loss_weight)


def bi_encoder_train_step(
    config: ElqConfig, loss: LossConfig, dtype: str = "float32", remat: bool = False
) -> Callable[..., tuple[TrainState, Metrics]]:
    """The step of the bi-encoder stage: both encoders learn, entities are encoded in the step.

    Returns:
      as `joint_train_step`, with `state.params` {"question": ..., "entity": ...}. Besides the
      questions the batch has `entity_ids` and `entity_mask` [B, M, 1 + N, T_e], the gold entity of
      each mention and N mined ones, and `negative_rows` [B, M, N]. `table` is None.
    """
    question = QuestionEncoder(config, jnp.dtype(dtype), remat)
    entity = EntityEncoder(config, jnp.dtype(dtype), remat)

    def losses_of(params, batch, table, key, num_queries, deterministic):
        del table
        keys = jax.random.split(key)
        span_logits, vectors = question.apply(
            {"params": params["question"]},
            batch["input_ids"],
            batch["mask"],
            batch["gold_bounds"],
            deterministic=deterministic,
            method="encode_mentions",
            rngs={"dropout": keys[0]},
        )
        span = losses.span_loss(span_logits, batch["gold_bounds"], batch["gold_mask"])
        chosen = _Mentions(batch, num_queries)
        tokens = [chosen.of(batch[name]) for name in ("entity_ids", "entity_mask")]
        width = tokens[0].shape[1]
        encoded = entity.apply(
            {"params": params["entity"]},
            *(x.reshape(-1, x.shape[-1]) for x in tokens),
            deterministic=deterministic,
            rngs={"dropout": keys[1]},
        ).reshape(num_queries, width, -1)
        queries, rows, mask = chosen.of(vectors), chosen.rows, chosen.mask
        if width == 1:
            return span, losses.in_batch_loss(
                queries, encoded[:, 0], rows, mask, AXIS, loss.mask_duplicates
            )
        linking = losses.hard_negatives_loss(
            queries,
            encoded[:, 0],
            rows,
            mask,
            encoded[:, 1:],
            chosen.of(batch["negative_rows"]),
            AXIS,
        )
        return span, linking

    return _train_step(losses_of, loss.span_loss_weight)


def _train_step(losses_of: Callable[..., Any], span_loss_weight: float) -> Callable[..., Any]:
    def train_step(state, batch, table, seed, num_queries, deterministic=False):
        # Every device draws its own dropout, every step another.
        # "rbg" compiles and runs several times faster than the default where dropout is drawn.
        key = jax.random.key(seed, impl="rbg")
        key = jax.random.fold_in(jax.random.fold_in(key, state.step), jax.lax.axis_index(AXIS))

        def loss_part(params):
            """This device's part of the mean over all devices, and the metrics' sums."""
            span, linking = losses_of(params, batch, table, key, num_queries, deterministic)
            span_count, linking_count = jax.lax.psum((span[1], linking[1]), AXIS)
            span_part = span[0] / jnp.maximum(span_count, 1)
            linking_part = linking[0] / jnp.maximum(linking_count, 1)
            return span_loss_weight * span_part + linking_part, (span_part, linking_part)

        (total, parts), grads = jax.value_and_grad(loss_part, has_aux=True)(state.params)
        grads, total, parts = jax.lax.psum((grads, total, parts), AXIS)
        state = state.apply_gradients(grads)
        # An optimiser that clips something else than these gradients says what.
        norm = optax.tree.get(state.opt_state, "grad_norm", _global_norm(grads))
        metrics = {
            "loss": total,
            "span_loss": parts[0],
            "linking_loss": parts[1],
            "grad_norm": norm,
        }
        return state, metrics

    return train_step


class _Mentions:
    """The real mentions of a device's batch [b, M] brought to the front and cut to [Q]."""

    def __init__(self, batch: Batch, num_queries: int):
        rows = batch["gold_rows"].reshape(-1)
        linkable = batch["gold_mask"].reshape(-1) & (rows >= 0)
        self._order = jnp.argsort(~linkable, stable=True)[:num_queries]
        self.mask = linkable[self._order]
        self.rows = jnp.where(self.mask, rows[self._order], 0)

    def of(self, array: jax.Array) -> jax.Array:
        """[b, M, ...] -> [Q, ...]."""
        return array.reshape(-1, *array.shape[2:])[self._order]


def _linking_loss(
    loss: LossConfig, vectors: jax.Array, batch: Batch, table: Table, num_queries: int
) -> losses.Sums:
    if loss.linking_loss == "hard_negatives_bce":
        return _original_hard_negatives(loss, vectors, batch, table)
    chosen = _Mentions(batch, num_queries)
    queries, rows, mask = chosen.of(vectors), chosen.rows, chosen.mask
    entities = exact.gather_rows(table.values, rows, AXIS, scale=table.scale)
    if loss.linking_loss == "in_batch":
        return losses.in_batch_loss(queries, entities, rows, mask, AXIS, loss.mask_duplicates)
    if loss.linking_loss == "hard_negatives":
        negatives, negative_rows = _mine(loss, queries, table)
        return losses.hard_negatives_loss(
            queries, entities, rows, mask, negatives, negative_rows, AXIS
        )
    return losses.full_catalogue_loss(
        queries,
        entities,
        mask,
        table.values,
        table.num_rows,
        scale=table.scale,
        chunk_size=loss.chunk_size,
        axis_name=AXIS,
    )


def _original_hard_negatives(loss, vectors, batch, table) -> losses.Sums:
    shape = batch["gold_rows"].shape
    mask = batch["gold_mask"] & (batch["gold_rows"] >= 0)
    rows = jnp.where(mask, batch["gold_rows"], 0).reshape(-1)
    queries = vectors.reshape(-1, vectors.shape[-1])
    entities = exact.gather_rows(table.values, rows, AXIS, scale=table.scale)
    negatives, negative_rows = _mine(loss, queries, table)
    return losses.hard_negatives_bce_loss(
        vectors,
        entities.reshape(vectors.shape),
        mask,
        negatives.reshape(*shape, *negatives.shape[1:]),
        (negative_rows != rows[:, None]).reshape(*shape, -1),
    )


def _mine(loss, queries, table) -> tuple[jax.Array, jax.Array]:
    """The N entities nearest to each query [Q, D]: their vectors [Q, N, D] and rows [Q, N]."""
    _, found = exact.sharded_top_k(
        jax.lax.stop_gradient(queries),
        table.values,
        loss.num_negatives,
        table.num_rows,
        AXIS,
        scale=table.scale,
    )
    negatives = exact.gather_rows(table.values, found.reshape(-1), AXIS, scale=table.scale)
    return negatives.reshape(*found.shape, -1), found


def _global_norm(tree: Any) -> jax.Array:
    return jnp.sqrt(sum(jnp.sum(x**2) for x in jax.tree.leaves(tree)))
