"""Computes the two encoders of ELQ (Li et al., 2020): question to mentions, entity to vector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from elq_jax.model import spans
from elq_jax.model.bert import BertEncoder
from elq_jax.model.config import ElqConfig


class QuestionEncoder(nn.Module):
    """Question encoder: maps token ids to span logits and mention vectors."""

    config: ElqConfig
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    def setup(self):
        config = self.config
        self.bert = BertEncoder(config.question_bert, self.dtype, self.remat)
        init = nn.initializers.truncated_normal(0.02)
        if config.mention_head == "mlp":
            self.mention_hidden = nn.Dense(config.question_bert.hidden_size, kernel_init=init)
            self.mention_dropout = nn.Dropout(0.1)
        self.mention_head = nn.Dense(3, kernel_init=init)
        if config.mention_aggregation.endswith("_linear"):
            self.mention_linear = nn.Dense(config.vector_width, kernel_init=_averaging_init)
        if config.score_scale is not None:
            initial = jnp.log(config.score_scale)
            self.log_scale = self.param("log_scale", lambda _: jnp.asarray(initial, jnp.float32))

    def __call__(
        self, input_ids: jax.Array, mask: jax.Array, deterministic: bool = True
    ) -> tuple[jax.Array, jax.Array]:
        """Encodes questions and scores their spans.

        Args:
          input_ids: [B, T] int32.
          mask: [B, T] bool.
          deterministic: whether there is no dropout.

        Returns:
          hidden states [B, T, D] and span logits [B, T, W] (-inf where no span), float32.
        """
        hidden = self.bert(input_ids, mask, deterministic)
        token_logits = self.token_logits(hidden, deterministic)
        return hidden, spans.span_logits(token_logits, mask, self.config.max_mention_width)

    def token_logits(self, hidden: jax.Array, deterministic: bool = True) -> jax.Array:
        """Computes start, end and inside logits of every token: [B, T, D] -> [B, T, 3]."""
        if self.config.mention_head == "mlp":
            hidden = jax.nn.relu(self.mention_hidden(hidden))
            hidden = self.mention_dropout(hidden, deterministic=deterministic)
        return self.mention_head(hidden)

    def mention_vectors(self, hidden: jax.Array, bounds: jax.Array) -> jax.Array:
        """Computes query vectors of spans; the inner product with an entity vector is its logit.

        Args:
          hidden: [B, T, D] float32.
          bounds: [B, K, 2] int32, inclusive.

        Returns:
          [B, K, D] float32 (D of the entities).
        """
        config = self.config
        if config.mention_aggregation == "fl_linear":
            ends = spans.span_ends(hidden, bounds)
            vectors = ends.reshape(*ends.shape[:2], -1)
        elif config.mention_aggregation == "fl_avg":
            vectors = spans.span_ends(hidden, bounds).mean(axis=2)
        else:
            vectors = spans.span_means(hidden, bounds)
        if config.mention_aggregation.endswith("_linear"):
            vectors = self.mention_linear(vectors)
        if config.normalize_mentions:
            vectors = unit_length(vectors)
        if config.score_scale is not None:
            vectors = vectors * jnp.exp(self.log_scale)
        return vectors

    def encode_mentions(
        self, input_ids: jax.Array, mask: jax.Array, bounds: jax.Array, deterministic: bool = True
    ) -> tuple[jax.Array, jax.Array]:
        """Computes span logits [B, T, W] and vectors [B, K, D] of spans at `bounds`, in one pass.

        Also the method to initialise with: it touches every parameter.
        """
        hidden, logits = self(input_ids, mask, deterministic)
        return logits, self.mention_vectors(hidden, bounds)


class EntityEncoder(nn.Module):
    """Entity encoder: maps token ids of `[CLS] title [unused2] text [SEP]` to vectors."""

    config: ElqConfig
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    def setup(self):
        with_pooler = self.config.entity_pooling == "pooler_linear"
        self.bert = BertEncoder(self.config.entity_bert, self.dtype, self.remat, with_pooler)
        if with_pooler:
            self.pooler_dropout = nn.Dropout(0.1)
            self.pooler_linear = nn.Dense(self.config.vector_width)

    def __call__(
        self, input_ids: jax.Array, mask: jax.Array, deterministic: bool = True
    ) -> jax.Array:
        """Encodes entities.

        Args:
          input_ids: [B, T] int32.
          mask: [B, T] bool.
          deterministic: whether there is no dropout.

        Returns:
          [B, D] float32.
        """
        hidden = self.bert(input_ids, mask, deterministic)
        if self.config.entity_pooling == "mean":
            weights = mask / jnp.maximum(mask.sum(-1, keepdims=True), 1)
            vectors = jnp.einsum("bt,btd->bd", weights, hidden, precision=jax.lax.Precision.HIGHEST)
        elif self.config.entity_pooling == "cls":
            vectors = hidden[:, 0]
        else:
            pooled = self.pooler_dropout(self.bert.pool(hidden), deterministic=deterministic)
            vectors = self.pooler_linear(pooled)
        return unit_length(vectors) if self.config.normalize_entities else vectors


def unit_length(vectors: jax.Array) -> jax.Array:
    """Divides each vector [..., D] by its L2 norm; a zero vector stays zero, with zero gradient."""
    squared = jnp.sum(vectors**2, axis=-1, keepdims=True)
    return vectors * jax.lax.rsqrt(jnp.maximum(squared, 1e-24))


def _averaging_init(key: jax.Array, shape: tuple[int, int], dtype: Any = jnp.float32) -> jax.Array:
    """Starts a linear map as the (mean of) identities where the widths allow, else at random."""
    inputs, outputs = shape
    if inputs % outputs:
        return nn.initializers.truncated_normal(0.02)(key, shape, dtype)
    copies = inputs // outputs
    return jnp.tile(jnp.eye(outputs, dtype=dtype), (copies, 1)) / copies


def question_apply(
    config: ElqConfig,
    params: Mapping[str, Any],
    *arrays: jax.Array,
    method: str = "__call__",
    dtype: str = "float32",
    remat: bool = False,
    rngs: Mapping[str, jax.Array] | None = None,
    **arguments: Any,
) -> Any:
    """Runs the question encoder; a pure function for use inside `jit`.

    Args:
      config: description of what the model computes.
      params: tree of the question encoder.
      *arrays: arguments of the method, such as input_ids [B, T] int32 and mask [B, T] bool.
      method: method of `QuestionEncoder`: "__call__" (hidden states and span logits),
        "encode_mentions" (also takes bounds [B, K, 2]) or "mention_vectors".
      dtype: type of the matrix products, "float32" or "bfloat16".
      remat: whether the backward pass computes each layer again instead of keeping activations.
      rngs: {"dropout": key} where `deterministic=False` is given.
      **arguments: further arguments of the method.
    """
    encoder = QuestionEncoder(config, jnp.dtype(dtype), remat)
    return encoder.apply({"params": params}, *arrays, method=method, rngs=rngs, **arguments)


def entity_apply(
    config: ElqConfig,
    params: Mapping[str, Any],
    input_ids: jax.Array,
    mask: jax.Array,
    *,
    deterministic: bool = True,
    dtype: str = "float32",
    remat: bool = False,
    rngs: Mapping[str, jax.Array] | None = None,
) -> jax.Array:
    """Encodes entities; a pure function for use inside `jit`.

    Args:
      config: description of what the model computes.
      params: tree of the entity encoder.
      input_ids: [B, T] int32.
      mask: [B, T] bool, True = real token.
      deterministic: whether there is no dropout.
      dtype: type of the matrix products, "float32" or "bfloat16".
      remat: whether the backward pass computes each layer again instead of keeping activations.
      rngs: {"dropout": key} where there is dropout.

    Returns:
      [B, D] float32.
    """
    encoder = EntityEncoder(config, jnp.dtype(dtype), remat)
    return encoder.apply({"params": params}, input_ids, mask, deterministic, rngs=rngs)


def initialise(config: ElqConfig, key: jax.Array) -> dict[str, Any]:
    """Draws random parameters of both encoders: {"question": tree, "entity": tree}."""
    question_key, entity_key = jax.random.split(key)
    ids, mask = jnp.zeros((1, 4), jnp.int32), jnp.ones((1, 4), bool)
    bounds = jnp.zeros((1, 1, 2), jnp.int32)
    question = QuestionEncoder(config).init(
        question_key, ids, mask, bounds, method="encode_mentions"
    )
    entity = EntityEncoder(config).init(entity_key, ids, mask)
    return {"question": dict(question["params"]), "entity": dict(entity["params"])}
