"""Losses against plain formulas, on one device and on several."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from elq_jax.model import losses

RNG = np.random.default_rng(7)
E, Q, D = 53, 6, 8
TABLE = RNG.normal(size=(E, D)).astype(np.float32)
QUERIES = RNG.normal(size=(Q, D)).astype(np.float32)
ROWS = RNG.integers(0, E, Q).astype(np.int32)
MASK = np.array([1, 1, 0, 1, 1, 1], bool)


def plain_catalogue_loss(queries, table=TABLE):
    logits = queries @ table.T
    losses_ = optax.softmax_cross_entropy_with_integer_labels(logits, ROWS)
    return jnp.sum(jnp.where(MASK, losses_, 0.0))


@pytest.mark.parametrize("chunk_size", [1, 7, 16, 53, 1000])
def test_full_catalogue_loss_is_a_softmax_over_all_entities(chunk_size):
    def loss(queries):
        total, count = losses.full_catalogue_loss(
            queries, TABLE[ROWS], MASK, jnp.asarray(TABLE), E, chunk_size=chunk_size
        )
        return total, count

    (total, count), gradient = jax.value_and_grad(loss, has_aux=True)(QUERIES)
    expected, expected_gradient = jax.value_and_grad(plain_catalogue_loss)(QUERIES)
    assert count == MASK.sum()
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-5)


@pytest.mark.parametrize("num_devices", [1, 2, 8])
def test_full_catalogue_loss_on_a_sharded_table(num_devices):
    """E = 53 divides by no number of devices; queries differ between devices."""
    local = -(-E // num_devices)
    shards = np.zeros((num_devices * local, D), np.float32)
    shards[:E] = TABLE
    queries = RNG.normal(size=(num_devices, Q, D)).astype(np.float32)

    def loss(queries, shard):
        return losses.full_catalogue_loss(
            queries, TABLE[ROWS], MASK, shard, E, chunk_size=5, axis_name="devices"
        )[0]

    step = jax.pmap(jax.value_and_grad(loss), axis_name="devices")
    totals, gradients = step(queries, shards.reshape(num_devices, local, D))
    for one, total, gradient in zip(queries, totals, gradients, strict=True):
        expected, expected_gradient = jax.value_and_grad(plain_catalogue_loss)(one)
        np.testing.assert_allclose(total, expected, rtol=1e-5)
        np.testing.assert_allclose(gradient, expected_gradient, atol=1e-5)


def test_full_catalogue_loss_with_a_row_scale():
    values = RNG.integers(-127, 128, (E, D)).astype(np.int8)
    scale = RNG.uniform(0.01, 0.02, E).astype(np.float32)
    table = values * scale[:, None]

    def loss(queries):
        return losses.full_catalogue_loss(
            queries, table[ROWS], MASK, jnp.asarray(values), E, scale=scale, chunk_size=10
        )[0]

    total, gradient = jax.value_and_grad(loss)(QUERIES)
    expected, expected_gradient = jax.value_and_grad(plain_catalogue_loss)(QUERIES, table)
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-5)


def test_full_catalogue_loss_holds_no_matrix_of_all_entities():
    """The largest temporary of the compiled gradient is bounded by the chunk, not by E."""
    rows = 200_000
    table = jax.ShapeDtypeStruct((rows, D), jnp.float32)

    def loss(queries, table):
        return losses.full_catalogue_loss(queries, queries, MASK, table, rows, chunk_size=1000)[0]

    compiled = jax.jit(jax.grad(loss)).lower(QUERIES, table).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < Q * rows * 4 / 4


def slow_in_batch(queries, entities, rows, mask, negatives=None, negative_rows=None):
    """With a set of entities for each mention; negatives are theirs by row."""
    total = 0.0
    for i in np.flatnonzero(mask):
        logits = [queries[i] @ entities[i]]
        for j in np.flatnonzero(mask):
            if j != i and rows[j] != rows[i]:
                logits.append(queries[i] @ entities[j])
        if negatives is not None:
            known = {-1, *rows[mask]}
            for vector, row in zip(negatives[i], negative_rows[i], strict=True):
                if row not in known:
                    logits.append(queries[i] @ vector)
        total += np.log(np.sum(np.exp(np.array(logits, np.float64)))) - logits[0]
    return total


@pytest.mark.parametrize("num_devices", [1, 2])
def test_in_batch_and_hard_negatives_against_a_slow_loop(num_devices):
    total = 8
    queries = RNG.normal(size=(total, D)).astype(np.float32)
    rows = np.array([3, 4, 3, 9, 1, 4, 0, 7], np.int32)
    mask = np.array([1, 1, 1, 0, 1, 1, 1, 1], bool)
    entities = TABLE[rows]
    # Its own gold entity, one of another mention, of padding (9), one in no batch, none.
    negative_rows = np.array([[3, 4, 9], [20, -1, 21], [0, 30, 3], [9, 3, 40]] * 2, np.int32)
    negatives = TABLE[negative_rows]

    def split(x):
        return x.reshape(num_devices, -1, *x.shape[1:])

    in_batch = jax.pmap(lambda *a: losses.in_batch_loss(*a, "devices"), axis_name="devices")
    sums, counts = in_batch(*map(split, (queries, entities, rows, mask)))
    np.testing.assert_allclose(sums.sum(), slow_in_batch(queries, entities, rows, mask), rtol=1e-5)
    assert counts.sum() == mask.sum()
    hard = jax.pmap(lambda *a: losses.hard_negatives_loss(*a, "devices"), axis_name="devices")
    arrays = (queries, entities, rows, mask, negatives, negative_rows)
    sums, _ = hard(*map(split, arrays))
    np.testing.assert_allclose(sums.sum(), slow_in_batch(*arrays), rtol=1e-5)


def test_span_loss_ignores_padding_examples():
    logits = RNG.normal(size=(2, 4, 4)).astype(np.float32)
    logits[:, np.tril_indices(4, -1)[0], np.tril_indices(4, -1)[1]] = -np.inf
    logits[1] = -np.inf
    bounds = np.array([[[1, 2], [0, 1]], [[0, 1], [0, 1]]])
    mask = np.array([[True, False], [False, False]])
    total, count = losses.span_loss(logits, bounds, mask)
    expected = 0.0
    for i in range(4):
        for j in range(i, 4):
            p = 1 / (1 + np.exp(-np.float64(logits[0, i, j])))
            expected -= np.log(p if (i, j) == (1, 2) else 1 - p)
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    assert count == 10
