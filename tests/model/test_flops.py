"""FLOPs by arithmetic against the products in traced programs."""

import jax
import jax.numpy as jnp
import pytest
from traced_products import products

from elq_jax.core.machine import peak_flops
from elq_jax.model import flops
from elq_jax.model.config import BertConfig, ElqConfig
from elq_jax.model.elq import EntityEncoder, QuestionEncoder

BERT = BertConfig(50, hidden_size=256, num_layers=1, num_heads=4, intermediate_size=1024)
WIDER = BertConfig(50, hidden_size=384, num_layers=1, num_heads=4, intermediate_size=512)
B, T, M = 4, 24, 2
IDS, MASK = jnp.zeros((B, T), jnp.int32), jnp.ones((B, T), bool)
BOUNDS = jnp.zeros((B, M, 2), jnp.int32)


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
