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


@pytest.mark.parametrize("k", [1, 10, 120, 530])
def test_few_queries_over_shards(stored, k, monkeypatch):
    monkeypatch.setattr(ExactIndex, "_in_one_pass", None)
    queries = normal(2, 16, seed=1)
    index = ExactIndex(stored, products="bfloat16")
    assert_found(index.search(queries, k), queries, stored[:], k)


def test_float32_searches_for_few_queries_as_for_many(monkeypatch):
    monkeypatch.setattr(ExactIndex, "_nearest_to_one", None)
    ExactIndex(normal(500, 8), products="float32").search(normal(1, 8), 3)


@pytest.mark.parametrize("k", [1, 5, 64, 300])
def test_largest_numbers_with_equal_ones(k):
    scores = np.random.default_rng(0).integers(0, 9, 300).astype(np.float32)
    scores[:40] = -np.inf
    values, places = exact.largest(scores, k)
    np.testing.assert_array_equal(places, np.argsort(-scores, kind="stable")[:k])
    np.testing.assert_array_equal(values, scores[places])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_index_in_another_dtype(stored, dtype):
    queries = normal(5, 16, seed=1)
    scores, _ = ExactIndex(stored, dtype=dtype).search(queries, 10)
    expected, _ = slow_search(queries, stored[:], 10)
    np.testing.assert_allclose(scores, expected, atol=0.2)
    if dtype == stored.dtype:
        np.testing.assert_allclose(scores, expected, atol=1e-5)


@pytest.fixture(params=["float32", "bfloat16"])
def two_passes(request, monkeypatch, tmp_path):
    """An index of 2,000 rows that searches in two passes, its rows, and their near-duplicates."""
    monkeypatch.setattr(exact, "_LEAST_ROWS", 1)
    monkeypatch.setattr(exact, "_ROWS", 256)
    monkeypatch.setattr(exact, "_ROWS_AT_ONCE", 1400)
    values = normal(2000, 24)
    values[1000:1300] = values[:300] * np.float32(1 + 2**-12)
    values[1300:1450] = values[7]
    writer = EmbeddingsWriter(tmp_path, 2000, 24, request.param, shard_rows=701)
    for shard in writer.missing_shards():
        writer.write_shard(shard, values[slice(*writer.shard_range(shard))])
    stored = writer.finish()
    return ExactIndex(stored, products="bfloat16", chunk_size=256), stored[:]


@pytest.mark.parametrize("k", [1, 10, 120])
def test_two_passes_give_the_answers_of_one(two_passes, k):
    index, values = two_passes
    # Some are rows whose near-duplicates rounding makes equal, and one is a row that is there 151
    # times; others are far from all rows.
    queries = np.concatenate([values[:40] * 3, normal(60, 24, seed=1)])
    assert_found(index.search(queries, k), queries, values, k)
    _, _, is_certain = index._in_two_passes(queries, k, 2 * k + 8)
    if k == 10:
        assert not is_certain[7]
        assert is_certain.mean() > 0.3


def test_zeros_of_the_bucket_sizes_compile_all_there_is(two_passes):
    """A service warms up with them; then no other number of queries compiles anything."""
    index, values = two_passes
    programs = exact._search_shard, exact._group_maxima, exact._best_groups, exact._merge
    for count in exact.QUERY_BUCKETS:
        index.search(np.zeros((count, 24), np.float32), 10)
    before = [program._cache_size() for program in programs]
    for count in (1, 2, 3, 5, 23, 24, 31, 33, 49, 65, 97, 127, 129, 150, 200, 300):
        queries = normal(count, 24, seed=count)
        index.search(queries, 10)
        queries[: count // 2] = values[: count // 2]  # Some of these are searched for again.
        index.search(queries, 10)
    assert [program._cache_size() for program in programs] == before


def test_rounding_leaves_no_better_row_out(two_passes):
    """Where the second pass is certain, the rows are right without the fallback."""
    index, values = two_passes
    queries = normal(300, 24, seed=2)
    scores, rows, is_certain = index._in_two_passes(queries, 3, 14)
    assert is_certain.mean() > 0.5
    queries = queries[is_certain]
    assert_found((scores[is_certain], rows[is_certain]), queries, values, 3)


def test_rounded_search_is_for_several_queries_in_bfloat16(monkeypatch):
    table, queries = normal(500, 8), normal(60, 8, seed=1)
    monkeypatch.setattr(ExactIndex, "_in_two_passes", None)
    ExactIndex(table, products="bfloat16").search(queries, 3)  # few rows
    monkeypatch.setattr(exact, "_LEAST_ROWS", 500)
    ExactIndex(table, products="float32").search(queries, 3)
    ExactIndex(table).search(queries, 3)  # as $ELQ_JAX_DTYPE says
    ExactIndex(table, "int8", products="bfloat16").search(queries, 3)
    ExactIndex(table, products="bfloat16").search(queries[:1], 3)
    ExactIndex(table, products="bfloat16").search(queries, 400)
    with pytest.raises(TypeError):
        ExactIndex(table, products="bfloat16").search(queries, 3)


def test_vectors_too_large_for_bfloat16(monkeypatch):
    monkeypatch.setattr(exact, "_LEAST_ROWS", 1)
    table = normal(100, 4)
    table[5] = 3.4e38, 0, 0, 0
    queries = np.tile(np.eye(4, dtype=np.float32)[:2], (30, 1))
    index = ExactIndex(table, products="bfloat16")
    assert_found(index.search(queries, 3), queries, table, 3)


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
