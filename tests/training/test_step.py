"""One training step: its losses, its dropout, its FLOPs, and the same step on any devices."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import NARROW_BERT
from traced_products import products

from elq_jax.core import devices as devices_lib
from elq_jax.losses import FullCatalogue, HardNegatives, InBatch, create_linking_loss
from elq_jax.model.bundle import initial_params
from elq_jax.model.config import BertConfig, ElqConfig
from elq_jax.retrieval.table import Table
from elq_jax.training.optimizer import create_optimizer, create_train_state
from elq_jax.training.step import Objective, parallel_train_step, train_step_flops

BCE = "elq_jax.original.loss:hard_negatives_bce"
# Small, so that it compiles quickly: most of this is about the step and not about the encoders.
SMALL = dataclasses.replace(NARROW_BERT, dropout_rate=0.0, attention_dropout_rate=0.0)
ENTITIES = 41  # They divide by neither 3 nor 8 devices.


def small_config(**dropout):
    bert = dataclasses.replace(SMALL, **dropout)
    return ElqConfig(bert, bert)


def small_vectors():
    return np.random.default_rng(1).normal(size=(ENTITIES, 16)).astype(np.float32)


def random_batch(size=8, length=8, mentions=2, entities=ENTITIES):
    rng = np.random.default_rng(3)
    starts = rng.integers(1, length - 4, (size, mentions))
    bounds = np.stack([starts, starts + rng.integers(0, 3, starts.shape)], axis=-1)
    batch = {
        "input_ids": rng.integers(0, 100, (size, length)).astype(np.int32),
        "mask": np.ones((size, length), bool),
        "gold_bounds": bounds.astype(np.int32),
        "gold_rows": rng.integers(-1, entities, (size, mentions)).astype(np.int32),
        "gold_mask": rng.random((size, mentions)) < 0.7,
        "example_mask": np.ones(size, bool),
    }
    batch["mask"][::3, length - 2 :] = False
    batch["mask"][-1] = batch["gold_mask"][-1] = batch["example_mask"][-1] = False
    return batch


def with_entities(batch, num_negatives):
    """The tokens of an entity are a function of its row, as in real data."""
    rng = np.random.default_rng(5)
    shape = (*batch["gold_rows"].shape, 1 + num_negatives, 8)
    first = batch["gold_rows"][..., None, None] * 7 + 10
    entity_ids = ((np.abs(first) + np.arange(8) + np.zeros(shape, int)) % 100).astype(np.int32)
    mined = entity_ids[..., 1:, :]
    mined[:] = rng.integers(0, 100, mined.shape)
    batch = batch | {"entity_ids": entity_ids, "entity_mask": np.ones(shape, bool)}
    if num_negatives:
        batch["negative_rows"] = rng.integers(-1, 9, (*shape[:-2], num_negatives), np.int32)
    return batch


# Of each one object, so that steps with it are one program.
TX = {"none": optax.sgd(0.0), "sgd": optax.sgd(0.01)}


@functools.cache
def compiled_step(objective, num_devices):
    """Tests share its programs."""
    return parallel_train_step(objective, jax.local_devices()[:num_devices])


@functools.cache
def params_of(model):
    """Random, with matrices ten times as large as at first, so that attention matters."""
    return jax.tree.map(lambda x: (10 if x.ndim > 1 else 1) * np.asarray(x), initial_params(model))


def run_steps(
    objective, params, batches, vectors=None, num_devices=1, tx=TX["sgd"], seed=0, **settings
):
    """Metrics of a step on each of the batches, and the parameters after them."""
    devices = jax.local_devices()[:num_devices]
    state = create_train_state(params, tx)
    state = devices_lib.replicate(state, devices)
    seed = devices_lib.replicate(np.int32(seed), devices)
    table = None if vectors is None else Table.place(vectors, devices)
    take_step = compiled_step(objective, num_devices)
    metrics = []
    for batch in batches:
        parts = devices_lib.split(batch, devices)
        num_queries = parts["gold_mask"][0].size
        deterministic = settings.get("deterministic", False)
        state, found = take_step(state, parts, table, seed, num_queries, deterministic)
        metrics.append({k: float(v) for k, v in devices_lib.unreplicate(found).items()})
    return metrics, devices_lib.unreplicate(state.params)


def assert_same(found, expected):
    for row, wanted in zip(found, expected, strict=True):
        assert row.keys() == wanted.keys() == {"loss", "span_loss", "linking_loss", "grad_norm"}
        for name, value in row.items():
            np.testing.assert_allclose(value, wanted[name], rtol=2e-4, err_msg=name)


@pytest.mark.parametrize(
    ("linking_loss", "num_devices"),
    [
        ("in_batch", 8),
        ("hard_negatives", 8),
        (BCE, 8),
        ("full_catalogue", 8),
        ("full_catalogue", 3),
    ],
)
def test_any_number_of_devices_takes_the_same_joint_steps(linking_loss, num_devices):
    loss = create_linking_loss({"linking_loss": linking_loss, "chunk_size": 4})
    objective = Objective(small_config(), loss)
    params = params_of(objective.model)["question"]
    batches = [random_batch()] * 2
    (expected, params), (found, others) = (
        run_steps(objective, params, batches, small_vectors(), n) for n in (1, num_devices)
    )
    assert_same(found, expected)
    for one, other in zip(jax.tree.leaves(params), jax.tree.leaves(others), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("num_negatives", [0, 2])
def test_any_number_of_devices_takes_the_same_bi_encoder_steps(num_negatives):
    batches = [with_entities(random_batch(), num_negatives)] * 2
    objective = Objective(small_config(), HardNegatives())
    params = params_of(objective.model)
    runs = [run_steps(objective, params, batches, None, n)[0] for n in (1, 8)]
    assert_same(runs[1], runs[0])


def test_accumulated_steps_equal_one_large_batch():
    objective = Objective(small_config(), FullCatalogue())
    params, vectors = params_of(objective.model)["question"], small_vectors()
    batch = random_batch(size=4)
    batch["gold_mask"][:] = batch["mask"][:] = True
    batch["gold_rows"] = np.abs(batch["gold_rows"])
    halves = [{k: v[i : i + 2] for k, v in batch.items()} for i in (0, 2)]
    results = []
    for parts, accumulate in (([batch], 1), (halves, 2)):
        tx = create_optimizer(1e-3, accumulate_steps=accumulate)
        results.append(run_steps(objective, params, parts, vectors, tx=tx)[1])
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), *results)
    assert np.mean(jax.tree.leaves(moved)) < 2e-5  # A step moves a parameter by 1e-3.


def small_steps(objective, count=1, is_joint=True, **settings):
    """Metrics of steps on one batch that change no parameter."""
    params = params_of(objective.model)
    batch = random_batch() if is_joint else with_entities(random_batch(), 2)
    settings = {"tx": TX["none"], **settings}
    vectors = small_vectors() if is_joint else None
    params = params["question"] if is_joint else params
    return run_steps(objective, params, [batch] * count, vectors, **settings)[0]


@pytest.mark.parametrize("is_joint", [True, False])
def test_the_total_is_the_weighted_sum(is_joint):
    """With weights 5 and 1; the gradient is that of the total, so it grows with the weight too."""
    loss = FullCatalogue() if is_joint else HardNegatives()
    rows = {
        weight: small_steps(Objective(small_config(), loss, weight), is_joint=is_joint)[0]
        for weight in (1.0, 5.0)
    }
    for weight, row in rows.items():
        expected = weight * row["span_loss"] + row["linking_loss"]
        np.testing.assert_allclose(row["loss"], expected, rtol=1e-5)
        np.testing.assert_allclose(row["span_loss"], rows[1.0]["span_loss"], rtol=1e-5)
        np.testing.assert_allclose(row["linking_loss"], rows[1.0]["linking_loss"], rtol=1e-5)
    assert rows[1.0]["grad_norm"] < rows[5.0]["grad_norm"]


@pytest.mark.parametrize(
    ("rates", "is_joint"),
    [
        ({"dropout_rate": 0.3}, True),
        ({"attention_dropout_rate": 0.3}, True),
        ({"dropout_rate": 0.3}, False),
    ],
)
def test_dropout_is_drawn_anew_at_every_step(rates, is_joint):
    """Of hidden states, or of attention alone; a deterministic step has none."""
    loss = FullCatalogue() if is_joint else HardNegatives()
    objective = Objective(small_config(**rates), loss)
    without = small_steps(Objective(small_config(), loss), is_joint=is_joint)[0]
    rows = small_steps(objective, 3, is_joint)
    assert len({row["loss"] for row in [without, *rows]}) == 4
    assert small_steps(objective, 3, is_joint) == rows  # The same seed draws the same.
    assert small_steps(objective, 3, is_joint, seed=1)[0]["loss"] != rows[0]["loss"]
    [deterministic] = small_steps(objective, 1, is_joint, deterministic=True)
    assert_same([deterministic], [without])


def test_dropout_of_the_entity_encoder_is_its_own():
    """With dropout in the entity encoder alone the span loss stays, the linking loss changes."""
    config = small_config()
    with_dropout = dataclasses.replace(
        config, entity_bert=dataclasses.replace(SMALL, dropout_rate=0.3)
    )
    [without] = small_steps(Objective(config, InBatch()), is_joint=False)
    rows = small_steps(Objective(with_dropout, InBatch()), 2, is_joint=False)
    for row in rows:
        np.testing.assert_allclose(row["span_loss"], without["span_loss"], rtol=1e-5)
    assert len({row["linking_loss"] for row in [without, *rows]}) == 3


def test_every_device_draws_its_own_dropout():
    """Two devices with the same questions: their mean is not what one of them has."""
    objective = Objective(small_config(dropout_rate=0.3), InBatch())
    batch = {name: array[:4] for name, array in random_batch().items()}
    twice = {name: np.concatenate([array] * 2) for name, array in batch.items()}
    params, vectors = params_of(objective.model)["question"], small_vectors()
    run = functools.partial(run_steps, params=params, vectors=vectors, tx=TX["none"])
    [one] = run(objective, batches=[batch])[0]
    [two] = run(objective, batches=[twice], num_devices=2)[0]
    assert abs(one["span_loss"] - two["span_loss"]) > 1e-4 * one["span_loss"]
    still = dataclasses.replace(objective, model=small_config())
    [one] = run(still, batches=[batch])[0]
    [two] = run(still, batches=[twice], num_devices=2)[0]
    np.testing.assert_allclose(one["span_loss"], two["span_loss"], rtol=1e-5)


B, T, M, E, N = 4, 24, 2, 900, 3  # E: one chunk, as the compiler counts the body of a loop once.
WIDE = ElqConfig(
    *[BertConfig(50, hidden_size=256, num_layers=1, num_heads=4, intermediate_size=1024)] * 2
)
# The weights of the means over mentions have no gradient. The logits of the gold entities, forward
# and backward, are too few to be counted.
NOT_COUNTED = -2 * B * M * T * 256


def lowered_step(objective, is_joint):
    """A training step on one device and shapes of what it is called with."""

    def arguments():
        batch = {
            "input_ids": jnp.zeros((B, T), jnp.int32),
            "mask": jnp.ones((B, T), bool),
            "gold_bounds": jnp.zeros((B, M, 2), jnp.int32),
            "gold_mask": jnp.ones((B, M), bool),
            "gold_rows": jnp.zeros((B, M), jnp.int32),
            "entity_ids": jnp.zeros((B, M, 1 + N, T), jnp.int32),
            "entity_mask": jnp.ones((B, M, 1 + N, T), bool),
            "negative_rows": jnp.zeros((B, M, N), jnp.int32),
        }
        params = initial_params(objective.model)
        params = params["question"] if is_joint else params
        table = Table(jnp.zeros((E, 256)), None, E) if is_joint else None
        state = create_train_state(params, create_optimizer(1e-5))
        batch, table = jax.tree.map(lambda x: x[None], (batch, table))
        return state, batch, table, jnp.int32(0)

    step = parallel_train_step(objective, jax.devices()[:1])
    shapes = jax.eval_shape(arguments)
    return step, (*shapes, B * M, True)


def products_of(objective, is_joint):
    step, arguments = lowered_step(objective, is_joint)
    return products(jax.make_jaxpr(step, static_argnums=(4, 5))(*arguments).jaxpr)


@pytest.mark.parametrize("linking_loss", ["in_batch", "hard_negatives", BCE, "full_catalogue"])
def test_joint_step_has_these_products(linking_loss):
    loss = create_linking_loss({"linking_loss": linking_loss, "num_negatives": N})
    objective = Objective(WIDE, loss)
    expected = train_step_flops(objective, B, T, B * M, E)
    if linking_loss == "full_catalogue":
        expected += 2 * B * M * E * 256  # The logits are computed a second time.
    assert products_of(objective, is_joint=True) == expected + NOT_COUNTED + 4 * B * M * 256


@pytest.mark.parametrize("loss", [InBatch(), HardNegatives()])
def test_bi_encoder_step_has_these_products(loss):
    objective = Objective(WIDE, loss)
    expected = train_step_flops(objective, B, T, B * M, None, T, N)
    assert products_of(objective, is_joint=False) == expected + NOT_COUNTED + 6 * B * M * 256


def test_joint_step_against_the_compiler():
    objective = Objective(WIDE, FullCatalogue())
    step, arguments = lowered_step(objective, is_joint=True)
    cost = step.lower(*arguments).compile().cost_analysis()
    found = (cost[0] if isinstance(cost, list) else cost)["flops"]
    expected = train_step_flops(objective, B, T, B * M, E) + 2 * B * M * E * 256
    # The compiler also counts norms, softmaxes and Adam.
    assert expected < found < 1.1 * expected
