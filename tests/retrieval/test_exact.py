"""Exact search against a stable sort of the full score matrix in NumPy."""

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from slow_search import assert_found, normal, slow_search

from elq_jax.core.errors import ElqError
from elq_jax.entities.embeddings import EmbeddingsWriter, Shard
from elq_jax.retrieval import exact
from elq_jax.retrieval.exact import ExactIndex
from elq_jax.retrieval.table import Table


def test_all_scores_equal_gives_the_first_rows():
    table = np.ones((300, 4), np.float32)
    found = ExactIndex(table, chunk_size=64).search(np.ones((2, 4)), 150)
    np.testing.assert_array_equal(found[1], [list(range(150))] * 2)


def test_negative_scores_are_not_beaten_by_padding():
    table = -np.ones((70, 4), np.float32)
    scores, rows = ExactIndex(table, chunk_size=32).search(np.ones((1, 4)), 70)
    np.testing.assert_array_equal(rows[0], range(70))
    np.testing.assert_array_equal(scores[0], -4)


def test_the_table_is_no_constant_of_the_program():
    text = exact._search_shard.lower(
        jnp.zeros((1, 64)), Shard(np.int32(0), jnp.ones((4096, 64))), 3, 1024
    ).as_text()
    assert len(text) < 100_000


@pytest.mark.parametrize("count", [0, 1, 3, 65, 300])
def test_index_takes_any_number_of_queries(count):
    queries, table = normal(count, 8, seed=1), normal(500, 8)
    scores, rows = ExactIndex(table).search(queries, 4)
    assert scores.shape == rows.shape == (count, 4)
    assert_found((scores, rows), queries, table, 4)


def test_few_compilations():
    index, before = ExactIndex(normal(321, 9)), exact._search_shard._cache_size()
    for count in (1, 2, 3, 4, 7, 11, 16, 1, 5):
        index.search(normal(count, 9), 4)
    assert exact._search_shard._cache_size() - before == 3


@pytest.fixture(params=["float32", "bfloat16", "int8"])
def stored(request, tmp_path):
    values = normal(530, 16)
    writer = EmbeddingsWriter(tmp_path, 530, 16, request.param, shard_rows=100)
    for shard in writer.missing_shards():
        writer.write_shard(shard, values[slice(*writer.shard_range(shard))])
    return writer.finish()


@pytest.mark.parametrize("k", [1, 10, 120, 530])
def test_index_over_shards(stored, k):
    queries = normal(5, 16, seed=1)
    assert_found(ExactIndex(stored).search(queries, k), queries, stored[:], k)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_index_in_another_dtype(stored, dtype):
    queries = normal(5, 16, seed=1)
    scores, _ = ExactIndex(stored, dtype=dtype).search(queries, 10)
    expected, _ = slow_search(queries, stored[:], 10)
    np.testing.assert_allclose(scores, expected, atol=0.2)
    if dtype == stored.dtype:
        np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_mapped_shards_are_not_copied(stored):
    index = ExactIndex(stored)
    for searched, shard in zip(index._shards, stored.shards, strict=True):
        place = shard.values.__array_interface__["data"][0]
        assert searched.values.unsafe_buffer_pointer() == place


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_bad_rows_and_queries(bad):
    table = normal(50, 4)
    index = ExactIndex(table.copy())
    queries = normal(3, 4)
    queries[1, 2] = bad
    with pytest.raises(ElqError, match="queries: row 1 holds NaN or infinity"):
        index.search(queries, 2)
    table[33, 1] = bad
    table[40, 1] = -bad
    for broken in (table, table.astype(ml_dtypes.bfloat16)):
        with pytest.raises(ElqError, match="row 33 holds NaN or infinity"):
            ExactIndex(broken)
        with pytest.raises(ElqError, match="row 33 holds NaN or infinity"):
            Table.divide(broken, 2)


def test_large_finite_values_are_accepted():
    table = np.full((50, 4), 3e38, np.float32)
    ExactIndex(table)


def test_wrong_arguments():
    index = ExactIndex(normal(20, 4))
    for k in (0, 21, -1):
        with pytest.raises(ElqError, match=f"k = {k}: expected 1 <= k <= 20"):
            index.search(normal(2, 4), k)
    for shape in ((2, 5), (4,), (1, 2, 4)):
        with pytest.raises(ElqError, match=r"expected \(Q, 4\)"):
            index.search(normal(*shape), 2)
    with pytest.raises(ElqError, match="at least one row"):
        ExactIndex(normal(0, 4))
    with pytest.raises(ElqError, match="float16"):
        ExactIndex(normal(3, 4), dtype="float16")
    with pytest.raises(ElqError, match="chunk_size = 0"):
        ExactIndex(normal(20, 4), chunk_size=0).search(normal(1, 4), 1)
