"""FLOPs by arithmetic against the products in traced programs and the compiler's own count."""

import math

import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import jaxprs_in_params

from elq_jax.core.devices import AXIS
from elq_jax.core.machine import peak_flops
from elq_jax.model import flops
from elq_jax.model.bert import BertConfig
from elq_jax.model.bundle import initial_params
from elq_jax.model.elq import ElqConfig, EntityEncoder, QuestionEncoder
from elq_jax.training.optimizer import create_optimizer, create_train_state
from elq_jax.training.step import (
    LINKING_LOSSES,
    LossConfig,
    Table,
    bi_encoder_train_step,
    joint_train_step,
)

BERT = BertConfig(50, hidden_size=256, num_layers=1, num_heads=4, intermediate_size=1024)
WIDER = BertConfig(50, hidden_size=384, num_layers=1, num_heads=4, intermediate_size=512)
B, T, M, E, N = 4, 24, 2, 900, 3  # E: one chunk, as the compiler counts the body of a loop once.
IDS, MASK = jnp.zeros((B, T), jnp.int32), jnp.ones((B, T), bool)
BOUNDS = jnp.zeros((B, M, 2), jnp.int32)


def products(jaxpr):
    """Twice the multiplications of all products in a traced program."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += 2 * equation.outvars[0].aval.size * math.prod(shape[i] for i in contracted)
        inner = sum(map(products, jaxprs_in_params(equation.params)))
        total += inner * equation.params.get("length", 1)
    return total


def traced(module, *arguments, method=None):
    def call(variables):
        return module.apply(variables, *arguments, method=method)

    variables = jax.eval_shape(lambda: module.init(jax.random.key(0), *arguments, method=method))
    return products(jax.make_jaxpr(call)(variables).jaxpr)


@pytest.mark.parametrize("head", ["linear", "mlp"])
@pytest.mark.parametrize("aggregation", ["all_avg", "fl_avg", "all_avg_linear", "fl_linear"])
def test_question_encoder_has_exactly_these_products(head, aggregation):
    entity = WIDER if aggregation.endswith("_linear") else BERT
    config = ElqConfig(
        BERT,
        entity,
        mention_head=head,
        mention_aggregation=aggregation,
    )
    found = traced(QuestionEncoder(config), IDS, MASK, BOUNDS, method="encode_mentions")
    assert flops.question_flops(config, B, T, B * M) == found


@pytest.mark.parametrize("pooling", ["cls", "mean", "pooler_linear"])
def test_entity_encoder_has_exactly_these_products(pooling):
    width = 100 if pooling == "pooler_linear" else None
    config = ElqConfig(
        *(BERT, BERT),
        mention_aggregation="all_avg_linear",
        entity_pooling=pooling,
        entity_width=width,
    )
    assert flops.entity_flops(config, B, T) == traced(EntityEncoder(config), IDS, MASK)


BATCH = {
    "input_ids": IDS,
    "mask": MASK,
    "gold_bounds": BOUNDS,
    "gold_mask": jnp.ones((B, M), bool),
    "gold_rows": jnp.zeros((B, M), jnp.int32),
    "entity_ids": jnp.zeros((B, M, 1 + N, T), jnp.int32),
    "entity_mask": jnp.ones((B, M, 1 + N, T), bool),
    "negative_rows": jnp.zeros((B, M, N), jnp.int32),
}
CONFIG = ElqConfig(BERT, BERT)
# The weights of the means over mentions have no gradient. The logits of the gold entities, forward
# and backward, are too few to be counted.
NOT_COUNTED = -2 * B * M * T * 256


def on_one_device(step, part=None):
    """A training step as a function of arrays with a leading axis, and what to trace it with."""

    def everything():
        params = initial_params(CONFIG)
        state = create_train_state(params[part] if part else params, create_optimizer(1e-5))
        table = Table(jnp.zeros((E, 256)), None, E) if part else None
        return jax.tree.map(lambda x: x[None], (state, BATCH, table, jnp.int32(0)))

    mapped = jax.pmap(
        lambda *arguments: step(*arguments, B * M, True), AXIS, devices=jax.devices()[:1]
    )
    return mapped, jax.eval_shape(everything)


@pytest.mark.parametrize("linking_loss", LINKING_LOSSES)
def test_joint_step_has_these_products(linking_loss):
    step = joint_train_step(CONFIG, LossConfig(linking_loss, num_negatives=N))
    mapped, arguments = on_one_device(step, "question")
    found = products(jax.make_jaxpr(mapped)(*arguments).jaxpr)
    expected = flops.train_step_flops(CONFIG, B, T, B * M, E, linking_loss, N)
    if linking_loss == "full_catalogue":
        expected += 2 * B * M * E * 256  # The logits are computed a second time.
    assert found == expected + NOT_COUNTED + 4 * B * M * 256


def test_bi_encoder_step_has_these_products():
    mapped, arguments = on_one_device(bi_encoder_train_step(CONFIG, LossConfig()))
    found = products(jax.make_jaxpr(mapped)(*arguments).jaxpr)
    expected = flops.bi_encoder_step_flops(CONFIG, B, T, B * M, T, N)
    assert found == expected + NOT_COUNTED + 6 * B * M * 256


def test_joint_step_against_the_compiler():
    mapped, arguments = on_one_device(joint_train_step(CONFIG, LossConfig()), "question")
    cost = mapped.lower(*arguments).compile().cost_analysis()
    found = (cost[0] if isinstance(cost, list) else cost)["flops"]
    expected = flops.train_step_flops(CONFIG, B, T, B * M, E) + 2 * B * M * E * 256
    # The compiler also counts norms, softmaxes and Adam.
    assert expected < found < 1.1 * expected


@pytest.mark.parametrize(
    ("kind", "dtype", "expected"),
    [
        ("NVIDIA H200", "bfloat16", 989e12),
        ("NVIDIA H100 80GB HBM3", "float32", 494e12),
        ("NVIDIA H100 PCIe", "bfloat16", 756e12),
        ("NVIDIA A100-SXM4-40GB", "bfloat16", 312e12),
        ("NVIDIA L4", "bfloat16", 121e12),
        ("NVIDIA L40S", "bfloat16", None),
        ("Tesla T4", "bfloat16", 65e12),
        ("TPU v3", "bfloat16", 123e12 / 2),
        ("TPU v4", "float32", 275e12),
        ("TPU v5 lite", "bfloat16", 197e12),
        ("TPU v5p", "bfloat16", 459e12),
        ("TPU v6 lite", "bfloat16", 918e12),
        ("TPU v4 lite", "bfloat16", None),
        ("NVIDIA H200", "float64", None),
        ("cpu", "bfloat16", None),
    ],
)
def test_peaks(kind, dtype, expected):
    assert peak_flops(kind, dtype) == expected
