"""Mined negatives against a loop over mentions and entities."""

import functools

import jax
import numpy as np
import pytest
from tiny import arrays, tiny_model

from elq_jax.questions.examples import TrainingExample
from elq_jax.retrieval import exact_index
from elq_jax.training import mining


def random_examples(count, rows, seed):
    """Questions of up to three mentions, some of entities that are not in the catalogue."""
    rng = np.random.default_rng(seed)
    examples = []
    for _ in range(count):
        length, mentions = int(rng.integers(6, 12)), int(rng.integers(0, 4))
        starts = rng.integers(1, length - 3, mentions)
        bounds = np.stack([starts, starts + rng.integers(0, 3, mentions)], axis=-1)
        ids = rng.integers(1000, 20000, length).astype(np.int32)
        gold = rng.integers(-1, rows, mentions).astype(np.int32)
        examples.append(TrainingExample(ids, bounds.astype(np.int32).reshape(-1, 2), gold))
    return examples


def slow_negatives(model, vectors, examples, num_negatives):
    """Ranks all entities for one mention at a time: negatives, and hits at 1 and at N + 1."""
    encode = jax.jit(functools.partial(model.question_apply, method="encode_mentions"))
    rows, hits = [], []
    for example in examples:
        mined = []
        ids, mask, bounds = (
            np.zeros(12, int),
            np.arange(12) < len(example.ids),
            np.zeros((3, 2), int),
        )
        ids[mask], bounds[: len(example.bounds)] = example.ids, example.bounds
        _, queries = encode(model.params["question"], ids[None], mask[None], bounds[None])
        queries = np.asarray(queries[0, : len(example.bounds)], np.float64)
        for query, gold in zip(queries, example.rows, strict=True):
            scores = [float(query @ vector) for vector in vectors]
            ranking = sorted(range(len(vectors)), key=lambda row: -scores[row])
            if gold >= 0:
                hits.append((ranking[0] == gold, gold in ranking[: num_negatives + 1]))
            wrong = [row for row in ranking if row != gold][:num_negatives]
            mined.append(wrong + [-1] * (num_negatives - len(wrong)))
        rows.append(np.array(mined, np.int32).reshape(-1, num_negatives))
    return rows, hits


@pytest.mark.parametrize(("num_rows", "num_negatives"), [(40, 3), (3, 5)])
def test_mining(num_rows, num_negatives, tmp_path):
    """The best wrong entities in order, -1 where a small catalogue has no more; recall of gold."""
    model = tiny_model()
    vectors = arrays("kb")["entity_encodings"][:num_rows]
    sets = [random_examples(13, num_rows, seed=1), random_examples(5, num_rows, seed=2)]
    devices = jax.local_devices()[:2]
    index = exact_index(vectors, devices)
    mined, recall = mining.mine_negatives(model, sets, num_negatives, index, devices, batch_size=4)

    hits = []
    for examples, found in zip(sets, mined, strict=True):
        expected, more = slow_negatives(model, vectors, examples, num_negatives)
        hits += more
        assert len(found) == len(examples)
        for example, example_mined, negatives in zip(examples, found, expected, strict=True):
            np.testing.assert_array_equal(example_mined.ids, example.ids)
            np.testing.assert_array_equal(example_mined.negatives, negatives)
    k = min(num_negatives + 1, num_rows)
    at_1, at_k = np.mean(hits, axis=0)
    assert recall == pytest.approx({"mined_recall_at_1": at_1, f"mined_recall_at_{k}": at_k})
    assert at_k > 0

    mining.save(tmp_path / "negatives.npz", mined)
    for saved, found in zip(mining.load(tmp_path / "negatives.npz", sets), mined, strict=True):
        for one, two in zip(saved, found, strict=True):
            np.testing.assert_array_equal(one.negatives, two.negatives)
    assert mining.load(tmp_path / "nothing.npz", sets) is None
