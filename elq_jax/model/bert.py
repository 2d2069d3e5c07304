"""Computes BERT (Devlin et al., 2019) as a Linen module.

Post-layer-norm, learned positions, exact (erf) GELU. Parameters are float32; matrix products run in
`dtype`; layer norms, softmax and everything after the last layer are float32. On CPUs a `dtype` of
bfloat16 is that of the operands of products with the parameters, and all else is float32; layers
that `cast_frozen` has arranged also round the weights and values of attention.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from elq_jax.model.config import BertConfig
from elq_jax.model.parameters import is_arranged

_TOKENS_TO_HALVE = 512


class Dense(nn.Module):
    """A linear map with a bias, whose product runs in `dtype`.

    On CPUs the result is float32 whatever `dtype` is: a product of bfloat16 numbers that returns
    bfloat16 takes as long there as one in float32, while one that returns float32 reaches the
    matrix units.

    Attributes:
      features: width of the result.
      dtype: type of the product, float32 or bfloat16.
    """

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., n] to [..., features]."""
        init = nn.initializers.truncated_normal(0.02)
        kernel = self.param("kernel", init, (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        if is_mixed(self.dtype):
            return mixed_product(x, kernel) + bias
        last = (((x.ndim - 1,), (0,)), ((), ()))
        x, kernel, bias = (array.astype(self.dtype) for array in (x, kernel, bias))
        return jax.lax.dot_general(x, kernel, last) + bias


def gelu(x: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Computes x * Phi(x), the exact GELU, for a product in `dtype`."""
    if not is_mixed(dtype):
        return jax.nn.gelu(x, approximate=False)
    # erf is faster than erfc, whose further digits near zero are lost in bfloat16's.
    return 0.5 * x * (1 + jax.lax.erf(x * np.float32(np.sqrt(0.5))))


def stream_type(dtype: jnp.dtype) -> jnp.dtype:
    """Returns the type of what lies between products in `dtype`."""
    return jnp.float32 if is_mixed(dtype) else dtype


class FastDropout(nn.Module):
    """Dropout whose random numbers cost less than the products around it, unlike `nn.Dropout`'s.

    A number's place is mixed with two random words of the call: "lowbias32", a bijection of 32 bits
    (Wellons, "Prospecting for Hash Functions", https://nullprogram.com/blog/2018/07/31/), with the
    first word added before and the second one in its middle.

    Attributes:
      rate: share of the numbers that become 0; the others grow accordingly.
    """

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool) -> jax.Array:
        """Drops numbers of an array of any shape, unless `deterministic`."""
        if deterministic or not self.rate:
            return x
        first, second = jax.random.bits(self.make_rng("dropout"), (2,))
        drawn = jax.lax.iota(jnp.uint32, x.size).reshape(x.shape) + first
        drawn = (drawn ^ (drawn >> 16)) * jnp.uint32(0x7FEB352D) ^ second
        drawn = (drawn ^ (drawn >> 15)) * jnp.uint32(0x846CA68B)
        drawn ^= drawn >> 16
        return jnp.where(drawn >= np.uint32(2**32 * self.rate), x / (1 - self.rate), 0)


def is_mixed(dtype: jnp.dtype) -> bool:
    """Returns whether products have operands of this type and float32 results: on CPUs."""
    return dtype != jnp.float32 and jax.default_backend() == "cpu"


@jax.custom_vjp
def mixed_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Multiplies numbers rounded to bfloat16 and sums in float32.

    Cotangents are rounded to bfloat16 too, so that the products of the backward pass are as fast.

    Args:
      x: [..., n] float32.
      kernel: [n, m] float32; or bfloat16, where no gradient is asked for.

    Returns:
      [..., m] float32.
    """
    return _mixed_forward(x, kernel)[0]


def _mixed_forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    x, kernel = x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
    return _float32_product(x, kernel, 0), (x, kernel)


def _mixed_backward(residuals: tuple[jax.Array, ...], cotangent: jax.Array) -> tuple[Any, Any]:
    x, kernel = residuals
    cotangent = cotangent.astype(jnp.bfloat16)
    x_gradient = _float32_product(cotangent, kernel, 1)
    # The fast kernel sums over the last axis of its first operand. XLA would fold the transposition
    # of a matrix into the product again, but does not fold that of an array with three axes.
    transposed = jnp.moveaxis(x, -1, 0).reshape(x.shape[-1], -1)
    cotangent = cotangent.reshape(-1, cotangent.shape[-1])
    return x_gradient, _float32_product(transposed, cotangent, 0)


mixed_product.defvjp(_mixed_forward, _mixed_backward)


def _float32_product(x: jax.Array, y: jax.Array, axis: int) -> jax.Array:
    """Sums over the last axis of `x` and an axis of the matrix `y`; returns float32."""
    axes = (((x.ndim - 1,), (axis,)), ((), ()))
    return jax.lax.dot_general(x, y, axes, preferred_element_type=jnp.float32)


class BertLayer(nn.Module):
    """Self-attention and a feed-forward block, each with a residual connection and a norm."""

    config: BertConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, hidden: jax.Array, mask: jax.Array, deterministic: bool = True) -> jax.Array:
        """Maps hidden states [B, T, D] to hidden states [B, T, D]; `mask` is [B, T] bool."""
        config = self.config
        head_size = config.hidden_size // config.num_heads
        stream_dtype = stream_type(self.dtype)
        dropout = FastDropout if is_mixed(self.dtype) else nn.Dropout

        def dense(features: int, name: str) -> Dense:
            return Dense(features, self.dtype, name=name)

        def residual_norm(residual: jax.Array, update: jax.Array, name: str) -> jax.Array:
            update = dropout(config.dropout_rate)(update, deterministic=deterministic)
            norm = nn.LayerNorm(epsilon=config.layer_norm_eps, dtype=jnp.float32, name=name)
            return norm(residual + update).astype(stream_dtype)

        def heads(x: jax.Array) -> jax.Array:
            return x.reshape(*x.shape[:2], config.num_heads, head_size)

        query = heads(dense(config.hidden_size, "query")(hidden))
        key = heads(dense(config.hidden_size, "key")(hidden))
        value = heads(dense(config.hidden_size, "value")(hidden))
        logits = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32)
        logits = logits / np.sqrt(head_size)
        # A finite minimum, so that rows of padding examples give numbers and not NaN.
        logits = jnp.where(mask[:, None, None, :], logits, jnp.finfo(jnp.float32).min)
        weights = jax.nn.softmax(logits).astype(stream_dtype)
        weights = dropout(config.attention_dropout_rate)(weights, deterministic=deterministic)
        attended = jnp.einsum("bhqk,bkhd->bqhd", weights, value).reshape(hidden.shape)
        attended = dense(config.hidden_size, "attention_output")(attended)
        hidden = residual_norm(hidden, attended, "attention_norm")

        inner = dense(config.intermediate_size, "intermediate")(hidden)
        inner = gelu(inner, self.dtype)
        return residual_norm(hidden, dense(config.hidden_size, "output")(inner), "output_norm")


@functools.partial(jax.jit, static_argnums=(0, 1))
def _run_layer(
    config: BertConfig,
    dtype: jnp.dtype,
    params: Mapping[str, Any],
    hidden: jax.Array,
    mask: jax.Array,
) -> jax.Array:
    """Runs a layer without dropout; a function of its own, so that it is traced for one layer."""
    layer = BertLayer(config, dtype, parent=None)
    return layer.apply({"params": params}, hidden, mask)


@functools.partial(jax.jit, static_argnums=0)
def _run_frozen_layer(
    config: BertConfig, params: Mapping[str, Any], hidden: jax.Array, mask: jax.Array
) -> jax.Array:
    """Runs a layer without dropout whose parameters `cast_frozen` has prepared, on a CPU.

    The numbers are those of `_run_layer` but for the order of sums, and for the weights and values
    of attention, which are rounded to bfloat16 too. Weights are [keys, queries] and are divided by
    their sum at the end, which takes less time.
    """
    head_size = config.hidden_size // config.num_heads

    def dense(x: jax.Array, name: str) -> jax.Array:
        rows = params[name]["rows"]
        return _float32_product(x.astype(rows.dtype), rows, 1) + params[name]["bias"]

    def norm(x: jax.Array, name: str) -> jax.Array:
        module = nn.LayerNorm(epsilon=config.layer_norm_eps, dtype=jnp.float32, parent=None)
        return module.apply({"params": params[name]}, x)

    together = jnp.split(dense(hidden, "query_key_value"), 3, axis=-1)
    query, key, value = (x.reshape(*x.shape[:2], config.num_heads, head_size) for x in together)
    logits = jnp.einsum("bkhd,bqhd->bhkq", key, query / np.sqrt(head_size))
    logits += jnp.where(mask, 0, jnp.finfo(jnp.float32).min)[:, None, :, None]
    weights = jnp.exp(logits - jnp.max(logits, axis=2, keepdims=True))
    total = jnp.moveaxis(jnp.sum(weights, axis=2), 1, 2)  # [B, T, heads]
    weights, value = weights.astype(jnp.bfloat16), value.astype(jnp.bfloat16)
    attended = jnp.einsum("bhkq,bkhd->bqhd", weights, value, preferred_element_type=jnp.float32)
    attended = (attended / total[..., None]).reshape(hidden.shape)
    hidden = norm(hidden + dense(attended, "attention_output"), "attention_norm")
    inner = gelu(dense(hidden, "intermediate"), jnp.bfloat16)
    return norm(hidden + dense(inner, "output"), "output_norm")


def _frozen_states(
    config: BertConfig, layers: Sequence[Mapping[str, Any]], hidden: jax.Array, mask: jax.Array
) -> list[jax.Array]:
    """Returns `hidden` [B, T, D] and the output of every layer after it.

    Large batches are computed as two halves, whose activations fit into the cache better.
    """
    halves = 2 if hidden.shape[0] % 2 == 0 and mask.size >= _TOKENS_TO_HALVE else 1
    states = []
    for half, half_mask in zip(jnp.split(hidden, halves), jnp.split(mask, halves), strict=True):
        states.append([half])
        for layer in layers:
            states[-1].append(_run_frozen_layer(config, layer, states[-1][-1], half_mask))
    return [jnp.concatenate(parts) for parts in zip(*states, strict=True)]


class BertEncoder(nn.Module):
    """BERT encoder: maps token ids to the hidden states of the last layer.

    Attributes:
      config: sizes of the encoder.
      dtype: type of the matrix products, float32 or bfloat16.
      remat: whether the backward pass computes each layer again instead of keeping activations.
      with_pooler: whether there is the [CLS] pooler of published checkpoints too (`pool`).
    """

    config: BertConfig
    dtype: jnp.dtype = jnp.float32
    remat: bool = False
    with_pooler: bool = False

    def setup(self):
        config = self.config
        init = nn.initializers.truncated_normal(0.02)
        width = config.hidden_size
        self.word = nn.Embed(config.vocab_size, width, embedding_init=init)
        self.position = nn.Embed(config.max_positions, width, embedding_init=init)
        self.token_type = nn.Embed(config.num_token_types, width, embedding_init=init)
        self.embedding_norm = nn.LayerNorm(epsilon=config.layer_norm_eps, dtype=jnp.float32)
        dropout = FastDropout if is_mixed(self.dtype) else nn.Dropout
        self.embedding_dropout = dropout(config.dropout_rate)
        layer = nn.remat(BertLayer, static_argnums=(3,)) if self.remat else BertLayer
        self.layers = [layer(config, self.dtype) for _ in range(config.num_layers)]
        if self.with_pooler:
            self.pooler = nn.Dense(width, kernel_init=init)

    def __call__(
        self, input_ids: jax.Array, mask: jax.Array, deterministic: bool = True
    ) -> jax.Array:
        """Encodes tokens.

        Args:
          input_ids: [B, T] int32, T <= max_positions.
          mask: [B, T] bool, True = real token.
          deterministic: whether there is no dropout; else an rng named "dropout" is needed.

        Returns:
          hidden states of the last layer, [B, T, D] float32.

        Raises:
          ValueError: T is larger than the position embedding.
        """
        return self.all_hidden_states(input_ids, mask, deterministic)[-1]

    def all_hidden_states(
        self, input_ids: jax.Array, mask: jax.Array, deterministic: bool = True
    ) -> list[jax.Array]:
        """Returns the output of the embedding and of every layer, each [B, T, D] float32."""
        length = input_ids.shape[1]
        if length > self.config.max_positions:
            raise ValueError(
                f"input_ids: {length} tokens; expected at most max_positions = "
                f"{self.config.max_positions}"
            )
        hidden = (
            self.word(input_ids) + self.position(jnp.arange(length)) + self.token_type.embedding[0]
        )
        hidden = self.embedding_dropout(self.embedding_norm(hidden), deterministic=deterministic)
        states = [hidden.astype(stream_type(self.dtype))]
        if deterministic and not self.is_initializing():
            layers = [layer.variables["params"] for layer in self.layers]
            if is_arranged(layers[0]):
                return _frozen_states(self.config, layers, hidden, mask)
            for params in layers:
                states.append(_run_layer(self.config, self.dtype, params, states[-1], mask))
        else:
            for layer in self.layers:
                states.append(layer(states[-1], mask, deterministic))
        return [state.astype(jnp.float32) for state in states]

    def pool(self, hidden: jax.Array) -> jax.Array:
        """Computes tanh(linear([CLS])), [B, T, D] -> [B, D]; only where `with_pooler`."""
        return jnp.tanh(self.pooler(hidden[:, 0]))
