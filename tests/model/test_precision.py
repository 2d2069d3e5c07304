"""The encoder in bfloat16 on a CPU: its numbers, and products in the form that is fast there."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
import scipy.stats
from jax.extend.core import jaxprs_in_params
from traced_products import products

from elq_jax.model.bert import BertEncoder, FastDropout, gelu, mixed_product
from elq_jax.model.config import BertConfig
from elq_jax.model.parameters import cast_frozen

CONFIG = BertConfig(
    vocab_size=50,
    hidden_size=64,
    num_layers=3,
    num_heads=4,
    intermediate_size=256,
    max_positions=16,
)


def tokens():
    random = np.random.default_rng(0)
    lengths = random.integers(3, 17, (8, 1))
    return random.integers(1, 50, (8, 16)), np.arange(16) < lengths


def parameters():
    params = BertEncoder(CONFIG).init(jax.random.key(0), *tokens())["params"]
    # Of a published encoder's size, so that layers do more than their residual connections.
    return jax.tree.map(lambda x: x * 4 if x.ndim == 2 else x, params)


def loss_of(dtype):
    encoder, (ids, mask) = BertEncoder(CONFIG, jnp.dtype(dtype)), tokens()
    weights = np.random.default_rng(1).normal(size=(8, 16, 64)).astype(np.float32)

    def loss(params):
        hidden = encoder.apply({"params": params}, ids, mask)
        return jnp.sum(hidden * weights, where=mask[..., None]), hidden

    return jax.value_and_grad(loss, has_aux=True)


def cosines(x, y):
    return (x * y).sum(-1) / np.linalg.norm(x, axis=-1) / np.linalg.norm(y, axis=-1)


def test_vectors_and_gradients_are_close_to_float32():
    params = parameters()
    (_, exact), exact_gradient = jax.jit(loss_of("float32"))(params)
    (_, hidden), gradient = jax.jit(loss_of("bfloat16"))(params)
    assert hidden.dtype == jnp.float32
    assert 1e-6 < 1 - cosines(np.asarray(hidden), np.asarray(exact)).min() < 1e-4
    size = float(optax.tree.norm(exact_gradient))
    for (path, own), reference in zip(
        jax.tree_util.tree_leaves_with_path(gradient), jax.tree.leaves(exact_gradient), strict=True
    ):
        assert own.dtype == reference.dtype
        own, reference = np.ravel(own), np.ravel(reference)
        if np.linalg.norm(reference) > 1e-3 * size:  # not the biases of keys, where it is 0
            assert cosines(own, reference) > 0.998, path
            assert abs(np.linalg.norm(own) / np.linalg.norm(reference) - 1) < 0.01, path


def hidden_of(params, ids, mask):
    return jax.jit(BertEncoder(CONFIG, jnp.bfloat16).apply)({"params": params}, ids, mask)


def test_frozen_parameters_are_arranged_for_a_cpu(monkeypatch):
    params = jax.device_get(parameters())
    assert cast_frozen(params, "float32") is params
    frozen = cast_frozen({"bert": params}, "bfloat16")["bert"]
    layer, arranged = params["layers_1"], frozen["layers_1"]
    for name in ("attention_output", "intermediate", "output"):
        np.testing.assert_array_equal(
            arranged[name]["rows"], layer[name]["kernel"].astype(ml_dtypes.bfloat16).T
        )
        np.testing.assert_array_equal(arranged[name]["bias"], layer[name]["bias"])
    rows = arranged["query_key_value"]["rows"].reshape(3, 64, 64)
    for own, name in zip(rows, ("query", "key", "value"), strict=True):
        np.testing.assert_array_equal(own.T, layer[name]["kernel"].astype(ml_dtypes.bfloat16))
    jax.tree.map(np.testing.assert_array_equal, frozen["word"], params["word"])
    # Elsewhere kernels are rounded only, and the numbers are exactly those of unrounded ones.
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    frozen = cast_frozen(params, "bfloat16")
    types = {path[-1].key: x.dtype for path, x in jax.tree_util.tree_leaves_with_path(frozen)}
    assert {name for name, dtype in types.items() if dtype == ml_dtypes.bfloat16} == {"kernel"}
    monkeypatch.undo()
    np.testing.assert_array_equal(hidden_of(frozen, *tokens()), hidden_of(params, *tokens()))


@pytest.mark.parametrize("times", [1, 4])  # From 512 tokens on, in halves.
def test_frozen_layers_on_a_cpu(times):
    """As near to float32 as other layers in bfloat16 are, and nearer to these."""
    params = jax.device_get(parameters())
    ids, mask = (np.tile(array, (times, 1)) for array in tokens())
    exact = BertEncoder(CONFIG).apply({"params": params}, ids, mask)
    rounded, frozen = (
        hidden_of(params, ids, mask),
        hidden_of(cast_frozen(params, "bfloat16"), ids, mask),
    )
    distance = [np.abs(x - exact)[mask].mean() for x in (rounded, frozen)]
    assert 0.8 < distance[1] / distance[0] < 1.25
    assert 1 - cosines(np.asarray(frozen), np.asarray(exact))[mask].min() < 1e-4
    assert 0 < np.abs(frozen - rounded)[mask].mean() < distance[0]
    np.testing.assert_array_equal(frozen, np.tile(frozen[:8], (times, 1, 1)))


def test_mixed_product_against_numpy():
    random = np.random.default_rng(0)
    x, kernel, cotangent = (
        random.normal(size=shape).astype(np.float32) for shape in ((2, 3, 8), (8, 5), (2, 3, 5))
    )
    result, pull = jax.vjp(mixed_product, x, kernel)
    x_gradient, kernel_gradient = pull(cotangent)
    x, kernel, cotangent = (
        a.astype(ml_dtypes.bfloat16).astype(np.float64) for a in (x, kernel, cotangent)
    )
    for own, exact in (
        (result, x @ kernel),
        (x_gradient, cotangent @ kernel.T),
        (kernel_gradient, np.einsum("btn,btm->nm", x, cotangent)),
    ):
        assert own.dtype == np.float32
        np.testing.assert_allclose(own, exact, rtol=1e-5, atol=1e-5)


def test_all_products_with_parameters_have_the_fast_form():
    """bfloat16 operands, the last axis of the first one summed over, float32 result."""
    jaxpr = jax.make_jaxpr(loss_of("bfloat16"))(parameters()).jaxpr
    fast = []

    def visit(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general":
                (contracted, _), batch = equation.params["dimension_numbers"]
                operands = [variable.aval for variable in equation.invars]
                if operands[0].dtype == jnp.bfloat16:
                    assert operands[1].dtype == jnp.bfloat16
                    assert equation.outvars[0].aval.dtype == jnp.float32
                    assert (contracted, batch) == ((operands[0].ndim - 1,), ((), ()))
                    fast.append(2 * equation.outvars[0].aval.size * operands[0].shape[-1])
            for inner in jaxprs_in_params(equation.params):
                visit(inner)

    visit(jaxpr)
    width, inner, rows = 64, 256, 8 * 16
    assert sum(fast) == 3 * 3 * 2 * rows * (4 * width**2 + 2 * width * inner)
    attention = 3 * 3 * 2 * 2 * 8 * 16 * 16 * width
    assert products(jaxpr) == sum(fast) + attention


def test_gelu():
    x = np.linspace(-6, 6, 1001, dtype=np.float32)
    exact = x * scipy.stats.norm.cdf(x.astype(np.float64))
    np.testing.assert_allclose(gelu(x, jnp.bfloat16), exact, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(gelu(x, jnp.float32), jax.nn.gelu(x, approximate=False))


def test_fast_dropout():
    dropout, x = FastDropout(0.1), jnp.arange(1.0, 90_004.0).reshape(3, -1)
    assert dropout.apply({}, x, True) is x
    rngs = {"dropout": jax.random.key(0, impl="rbg")}
    dropped = dropout.apply({}, x, False, rngs=rngs)
    kept_mask = np.asarray(dropped) != 0
    assert abs(kept_mask.mean() - 0.9) < 0.004  # 4 standard deviations, as below
    np.testing.assert_allclose(dropped[kept_mask], x[kept_mask] / 0.9, rtol=1e-6)
    other = dropout.apply({}, x, False, rngs={"dropout": jax.random.key(1, impl="rbg")})
    # Whether a number is dropped says nothing about others nearby, a row away, or in another call.
    others = [*(np.roll(kept_mask, n, axis=1) for n in (1, 2, 3, 4, 8, 16, 256, 384)),
              np.roll(kept_mask, 1, axis=0), np.asarray(other) != 0]  # fmt: skip
    for mask in others:
        assert abs((kept_mask == mask).mean() - (0.9**2 + 0.1**2)) < 0.006
    gradient = jax.grad(lambda x: dropout.apply({}, x, False, rngs=rngs).sum())(x)
    np.testing.assert_allclose(gradient, kept_mask / 0.9, rtol=1e-6)
    assert FastDropout(0.0).apply({}, x, False) is x
