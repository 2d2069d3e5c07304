"""The arithmetic of docs/scaling.md against the model and against a compiler's text."""

import math

import jax
import jax.numpy as jnp
import pytest

from benchmarks import scaling
from elq_jax.model.config import ElqConfig
from elq_jax.model.elq import QuestionEncoder


@pytest.mark.parametrize("name", scaling.BERTS)
def test_parameters_are_those_of_the_question_encoder(name):
    bert = scaling.BERTS[name]
    shapes = jax.eval_shape(
        lambda: QuestionEncoder(ElqConfig(bert, bert)).init(
            jax.random.key(0), jnp.zeros((1, 4), jnp.int32), jnp.ones((1, 4), bool)
        )
    )
    counted = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    assert scaling.Work(bert, 10, 1, 4, 1).parameters == counted


def test_bytes_of_collectives_are_read_from_a_program():
    text = """
  %all-reduce.1 = (f32[4,2]{1,0}, bf16[8]{0}) all-reduce(%a, %b), channel_id=1, replica_groups={{0,1}}, to_apply=%add
  %g = s32[2,3,1]{2,1,0} all-gather(%rows), channel_id=2, replica_groups=[1,2]<=[2], dimensions={0}
  %s = f32[5]{0} reduce-scatter(%x), channel_id=3, replica_groups={{0,1,2,3}}, dimensions={0}
  %t = f32[6]{0} reduce-scatter(%x), channel_id=3, replica_groups=[1,8]<=[8], dimensions={0}
  %other = f32[100]{0} add(%p, %q)
"""  # noqa: E501
    assert scaling.collectives(text) == {
        "all-reduce": 4 * 8 + 2 * 8,
        "all-gather": 4 * 6,
        "reduce-scatter": 4 * 5 * 4 + 4 * 6 * 8,
    }


def test_the_softmax_costs_a_device_the_same_if_the_batch_grows_with_the_slice():
    bert = scaling.BERTS["large"]
    costs = [
        scaling.Work(bert, 8_000_000, 16 * n, 32, 32).linking_flops(n) for n in (1, 8, 32, 128)
    ]
    assert costs == pytest.approx([costs[0]] * 4)
    assert costs[0] == 6 * 32 * 8_000_000 * 1024
