"""Losses against plain formulas and slow loops, on one device and on several."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import band_of

from elq_jax.core.devices import AXIS
from elq_jax.core.errors import ElqError
from elq_jax.losses import (
    FullCatalogue,
    HardNegatives,
    InBatch,
    Mentions,
    create_linking_loss,
    span_loss,
)
from elq_jax.original.loss import HardNegativesBce
from elq_jax.retrieval.table import Table
from elq_jax.training.step import EncodedEntities, FrozenEntities

RNG = np.random.default_rng(7)
E, Q, D = 53, 6, 8
TABLE = RNG.normal(size=(E, D)).astype(np.float32)
QUERIES = RNG.normal(size=(Q, D)).astype(np.float32)
ROWS = RNG.integers(0, E, Q).astype(np.int32)
MASK = np.array([1, 1, 0, 1, 1, 1], bool)


def mentions_of(vectors, rows=ROWS, mask=MASK, questions=None, axis_name=None):
    questions = jnp.arange(len(rows)) if questions is None else questions
    return Mentions(vectors, rows, mask, questions, len(rows), axis_name)


def frozen(vectors):
    return FrozenEntities(Table(vectors, None, len(vectors), axis_name=None))


def test_full_catalogue_is_a_softmax_over_all_entities():
    def loss(vectors):
        return FullCatalogue(chunk_size=7)(mentions_of(vectors), frozen(jnp.asarray(TABLE)))

    def plain(vectors):
        logits = vectors @ TABLE.T
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, ROWS)
        return jnp.sum(jnp.where(MASK, losses, 0.0))

    (total, count), gradient = jax.value_and_grad(loss, has_aux=True)(QUERIES)
    expected, expected_gradient = jax.value_and_grad(plain)(QUERIES)
    assert count == MASK.sum()
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-5)


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
    gold = TABLE[rows]
    # Its own gold entity, one of another mention, of padding (9), one in no batch, none.
    negative_rows = np.array([[3, 4, 9], [20, -1, 21], [0, 30, 3], [9, 3, 40]] * 2, np.int32)
    negatives = TABLE[negative_rows]

    def run(loss, *arrays):
        def on_device(queries, rows, mask, vectors, negative_rows):
            mentions = mentions_of(queries, rows, mask, axis_name=AXIS)
            return loss(mentions, EncodedEntities(vectors, negative_rows))

        parts = [np.stack(np.split(x, num_devices)) for x in (queries, rows, mask, *arrays)]
        return jax.pmap(on_device, axis_name=AXIS)(*parts)

    everything = np.concatenate([gold[:, None], negatives], axis=1)
    sums, counts = run(InBatch(), everything, negative_rows)
    np.testing.assert_allclose(sums.sum(), slow_in_batch(queries, gold, rows, mask), rtol=1e-5)
    assert counts.sum() == mask.sum()
    arrays = (queries, gold, rows, mask, negatives, negative_rows)
    sums, _ = run(HardNegatives(), everything, negative_rows)
    np.testing.assert_allclose(sums.sum(), slow_in_batch(*arrays), rtol=1e-5)
    # Without negatives it is the loss of the batch alone.
    sums, _ = run(HardNegatives(), gold[:, None], negative_rows[:, :0])
    np.testing.assert_allclose(sums.sum(), slow_in_batch(queries, gold, rows, mask), rtol=1e-5)


@pytest.mark.parametrize("num_negatives", [2, 5, 10])
def test_hard_negatives_in_a_catalogue_that_may_be_smaller(num_negatives):
    """Five entities: with N >= 5 every entity counts once, so the loss is that of all of them."""
    table, rows = TABLE[:5], np.array([3, 1, 1, 4, 0, 2], np.int32)
    mentions = mentions_of(QUERIES, rows)
    total, count = HardNegatives(num_negatives)(mentions, frozen(table))
    nearest = np.argsort(-QUERIES @ table.T, axis=1)[:, :num_negatives]
    arrays = (QUERIES, table[rows], rows, MASK, table[nearest], nearest)
    np.testing.assert_allclose(total, slow_in_batch(*arrays), rtol=1e-5)
    assert count == MASK.sum()
    if num_negatives >= 5:
        expected, _ = FullCatalogue()(mentions, frozen(table))
        np.testing.assert_allclose(total, expected, rtol=1e-5)


@pytest.mark.parametrize("num_negatives", [3, 10])
def test_hard_negatives_bce_against_a_slow_loop(num_negatives):
    """Of two mentions of a question; the mention that is no real one drops no rank."""
    table, rows = TABLE[:7], np.array([3, 1, 4, 1, 0, 2], np.int32)
    questions = np.array([0, 0, 1, 1, 2, 4], np.int32)
    mentions = mentions_of(QUERIES, rows, questions=questions)
    total, count = HardNegativesBce(num_negatives)(mentions, frozen(table))
    nearest = np.argsort(-QUERIES @ table.T, axis=1)[:, :num_negatives]
    pairs = []
    for i in np.flatnonzero(MASK):
        pairs.append((1, QUERIES[i] @ table[rows[i]]))
        for rank, row in enumerate(nearest[i]):
            same = [j for j in np.flatnonzero(MASK) if questions[j] == questions[i]]
            if all(nearest[j][rank] != rows[j] for j in same):
                pairs.append((0, QUERIES[i] @ table[row]))
    expected = sum(np.log1p(np.exp(np.float64(-x if target else x))) for target, x in pairs)
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    assert count == len(pairs)


def test_neutral_spans_do_not_count():
    """Against a slow loop: neutral cells are left out, gold ones stay, by value and gradient."""
    batch, length = 3, 5
    logits = RNG.normal(size=(batch, length, length)).astype(np.float32)
    logits[:, np.tril_indices(length, -1)[0], np.tril_indices(length, -1)[1]] = -np.inf
    logits[2, :, 3:] = logits[2, 3:] = -np.inf  # A question of three tokens.
    gold = np.array([[[1, 2], [3, 3]], [[0, 4], [0, 1]], [[0, 1], [0, 1]]])
    gold_mask = np.array([[True, True], [True, False], [False, False]])
    neutral = np.array(
        [[[1, 2], [2, 4], [2, 2]], [[0, 1], [2, 3], [0, 0]], [[0, 2], [2, 4], [0, 1]]]
    )
    neutral_mask = np.array([[True, True, True], [True, False, False], [True, True, False]])
    expected, count = 0.0, 0
    expected_gradient = np.zeros_like(logits)
    for b in range(batch):
        is_gold = set(map(tuple, gold[b, gold_mask[b]].tolist()))
        left_out = set(map(tuple, neutral[b, neutral_mask[b]].tolist()))
        for i in range(length):
            for j in range(length):
                if np.isfinite(logits[b, i, j]) and ((i, j) in is_gold or (i, j) not in left_out):
                    x, target = np.float64(logits[b, i, j]), float((i, j) in is_gold)
                    expected += np.log1p(np.exp(x)) - target * x
                    expected_gradient[b, i, j] = 1 / (1 + np.exp(-x)) - target
                    count += 1

    def total(logits):
        return span_loss(logits, gold, gold_mask, neutral, neutral_mask)

    (found, number), gradient = jax.value_and_grad(total, has_aux=True)(band_of(logits))
    assert number == count
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, band_of(expected_gradient, 0), atol=1e-6)


def test_a_batch_of_neutral_spans_only_teaches_nothing():
    logits = np.where(np.tri(4, dtype=bool).T, RNG.normal(size=(1, 4, 4)), -np.inf)
    every = np.array([[[i, j] for i in range(4) for j in range(4)]])
    mask = np.ones((1, 16), bool)
    arguments = (np.zeros((1, 1, 2), int), np.zeros((1, 1), bool), every, mask)
    (total, count), gradient = jax.value_and_grad(span_loss, has_aux=True)(
        jnp.float32(band_of(logits)), *arguments
    )
    assert (total, count) == (0, 0)
    assert not gradient.any()


def test_span_loss_ignores_padding_examples():
    logits = RNG.normal(size=(2, 4, 4)).astype(np.float32)
    logits[:, np.tril_indices(4, -1)[0], np.tril_indices(4, -1)[1]] = -np.inf
    logits[1] = -np.inf
    bounds = np.array([[[1, 2], [0, 1]], [[0, 1], [0, 1]]])
    mask = np.array([[True, False], [False, False]])
    total, count = span_loss(band_of(logits), bounds, mask)
    expected = 0.0
    for i in range(4):
        for j in range(i, 4):
            p = 1 / (1 + np.exp(-np.float64(logits[0, i, j])))
            expected -= np.log(p if (i, j) == (1, 2) else 1 - p)
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    assert count == 10


def test_a_loss_has_the_settings_of_its_stage():
    stage = {"linking_loss": "hard_negatives", "num_negatives": 3, "chunk_size": 7, "dtype": "int4"}
    assert create_linking_loss(stage) == HardNegatives(num_negatives=3)
    assert create_linking_loss({"linking_loss": "full_catalogue"}) == FullCatalogue()
    original = {"linking_loss": "elq_jax.original.loss:hard_negatives_bce"}
    assert create_linking_loss(original) == HardNegativesBce()
    with pytest.raises(ElqError, match=r"'in_batch': mask_duplicates: 'no'; expected `bool`"):
        create_linking_loss({"linking_loss": "in_batch", "mask_duplicates": "no"})
    with pytest.raises(ElqError, match="'hard_negatives': num_negatives: 0; expected `int` >= 1"):
        create_linking_loss({"linking_loss": "hard_negatives", "num_negatives": 0})
    with pytest.raises(ElqError, match=r"linking_loss: .triplet.; expected one of .*full_cat"):
        create_linking_loss({"linking_loss": "triplet"})
    with pytest.raises(ElqError, match=r"linking_loss 'no\.such\.module:x': No module named"):
        create_linking_loss({"linking_loss": "no.such.module:x"})


def test_losses_are_hashable_and_cannot_be_changed():
    """They are compiled in."""
    for loss in (InBatch(), HardNegatives(), FullCatalogue(), HardNegativesBce()):
        assert hash(loss) == hash(dataclasses.replace(loss))
        with pytest.raises(dataclasses.FrozenInstanceError):
            loss.num_negatives = 3


def test_a_softmax_over_the_catalogue_needs_the_catalogue():
    entities = EncodedEntities(TABLE[ROWS][:, None], None)
    with pytest.raises(ElqError, match="give hard_negatives or in_batch in bi_encoder"):
        FullCatalogue()(mentions_of(QUERIES), entities)
