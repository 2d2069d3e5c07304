"""Exact search against a stable sort of the full score matrix in NumPy."""

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from elq_jax.core.errors import ElqError
from elq_jax.entities.embeddings import EmbeddingsWriter, quantize
from elq_jax.retrieval import exact
from elq_jax.retrieval.exact import ExactIndex
from elq_jax.retrieval.sharded import ShardedIndex, place_table


def integers(*shape, seed=0, high=3):
    """Small whole numbers: every product is exact, and equal scores are common."""
    return np.random.default_rng(seed).integers(-high, high + 1, shape).astype(np.float32)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def slow_search(queries, table, k):
    scores = queries.astype(np.float64) @ table.astype(np.float64).T
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, rows, axis=1), rows


def assert_found(found, queries, table, k):
    scores, rows = slow_search(queries, table, k)
    np.testing.assert_array_equal(found[1], rows)
    np.testing.assert_allclose(found[0], scores, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("total", "k", "chunk_size"),
    [
        (1, 1, 32768),
        (31, 31, 4),  # k above the chunk: all rows
        (100, 5, 32),
        (1000, 7, 32),
        (1000, 70, 64),  # k above the chunk
        (1025, 10, 1024),
        (5000, 100, 2500),
        (2048, 3, 2048),
    ],
)
@pytest.mark.parametrize("values", [integers, normal])
def test_same_rows_as_a_stable_sort(total, k, chunk_size, values):
    queries, table = values(6, 8, seed=1), values(total, 8)
    search = jax.jit(exact.chunked_top_k, static_argnums=(2, 3))
    found = search(queries, table, k, chunk_size)
    assert found[0].dtype == np.float32
    assert found[1].dtype == np.int32
    assert_found(found, queries, table, k)


def test_all_scores_equal_gives_the_first_rows():
    table = np.ones((300, 4), np.float32)
    found = ExactIndex(table, chunk_size=64).search(np.ones((2, 4)), 150)
    np.testing.assert_array_equal(found[1], [list(range(150))] * 2)


def test_negative_scores_are_not_beaten_by_padding():
    table = -np.ones((70, 4), np.float32)
    scores, rows = ExactIndex(table, chunk_size=32).search(np.ones((1, 4)), 70)
    np.testing.assert_array_equal(rows[0], range(70))
    np.testing.assert_array_equal(scores[0], -4)


@pytest.mark.parametrize("num_rows", [0, 3, 40, 99])
def test_rows_beyond_num_rows_do_not_count(num_rows):
    queries, table = integers(4, 8, seed=1), integers(100, 8)
    search = jax.jit(exact.chunked_top_k, static_argnums=(2, 3))
    scores, rows = search(queries, table, 5, 32, num_rows=num_rows)
    count = min(5, num_rows)
    expected = slow_search(queries, table[:num_rows], count)
    np.testing.assert_array_equal(rows[:, :count], expected[1])
    assert np.all(np.isneginf(scores[:, count:]))


@pytest.mark.parametrize("dtype", ["bfloat16", "uint16", "int8"])
@pytest.mark.parametrize("chunk_size", [32, 1024])
def test_reduced_tables(dtype, chunk_size):
    queries, table, scale = normal(6, 8, seed=1), normal(300, 8), None
    if dtype == "int8":
        stored, scale = quantize(table)
        table = stored * scale[:, None]
    else:
        stored = table.astype(ml_dtypes.bfloat16)
        table = stored.astype(np.float32)
        stored = stored.view(np.uint16) if dtype == "uint16" else stored
    found = exact.chunked_top_k(queries, jnp.asarray(stored), 9, chunk_size, scale)
    assert_found(found, queries, table, 9)


def test_memory_is_bounded_by_the_chunk():
    arguments = jnp.zeros((256, 8)), jnp.zeros((200_000, 8))
    search = jax.jit(exact.chunked_top_k, static_argnums=(2, 3))
    used = search.lower(*arguments, 10, 8192).compile().memory_analysis().temp_size_in_bytes
    assert used < 4 * 256 * 8192 * 4  # all scores would be 205 MB, four chunks are 34 MB


def test_the_table_is_no_constant_of_the_program():
    text = exact._search_part.lower(
        jnp.zeros((1, 64)), jnp.ones((4096, 64)), None, np.int32(0), 3, 1024
    ).as_text()
    assert len(text) < 100_000


@pytest.mark.parametrize("count", [0, 1, 3, 65, 300])
def test_index_takes_any_number_of_queries(count):
    queries, table = normal(count, 8, seed=1), normal(500, 8)
    scores, rows = ExactIndex(table).search(queries, 4)
    assert scores.shape == rows.shape == (count, 4)
    assert_found((scores, rows), queries, table, 4)


def test_few_compilations():
    index, before = ExactIndex(normal(321, 9)), exact._search_part._cache_size()
    for count in (1, 2, 3, 4, 7, 11, 16, 1, 5):
        index.search(normal(count, 9), 4)
    assert exact._search_part._cache_size() - before == 3


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
    for part, shard in zip(index._parts, stored.shards, strict=True):
        place = shard.values.__array_interface__["data"][0]
        assert part[1].unsafe_buffer_pointer() == place


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_bad_rows_and_queries(bad):
    table = normal(50, 4)
    index = ExactIndex(table.copy())
    queries = normal(3, 4)
    queries[1, 2] = bad
    with pytest.raises(ElqError, match="query 1 holds NaN or infinity"):
        index.search(queries, 2)
    table[33, 1] = bad
    table[40, 1] = -bad
    for broken in (table, table.astype(ml_dtypes.bfloat16)):
        with pytest.raises(ElqError, match="row 33 holds NaN or infinity"):
            ExactIndex(broken)
        with pytest.raises(ElqError, match="row 33 holds NaN or infinity"):
            exact.shard_table(broken, 2)


def test_large_finite_values_are_accepted():
    table = np.full((50, 4), 3e38, np.float32)
    ExactIndex(table)


def test_wrong_arguments():
    index = ExactIndex(normal(20, 4))
    for k in (0, 21, -1):
        with pytest.raises(ElqError, match=f"k = {k}: expected 1 <= k <= 20"):
            index.search(normal(2, 4), k)
        with pytest.raises(ElqError, match=f"k = {k}"):
            exact.chunked_top_k(normal(2, 4), normal(20, 4), k)
    for shape in ((2, 5), (4,), (1, 2, 4)):
        with pytest.raises(ElqError, match=r"expected \(Q, 4\)"):
            index.search(normal(*shape), 2)
    with pytest.raises(ElqError, match="width 5, the table has 4"):
        exact.chunked_top_k(normal(2, 5), normal(20, 4), 3)
    with pytest.raises(ElqError, match="at least one row"):
        ExactIndex(normal(0, 4))
    with pytest.raises(ElqError, match="float16"):
        ExactIndex(normal(3, 4), dtype="float16")
    with pytest.raises(ElqError, match="chunk_size = 0"):
        ExactIndex(normal(20, 4), chunk_size=0).search(normal(1, 4), 1)


DEVICES = [1, 2, 8]


def mapped(function, num_devices, kind):
    """The function under `jax.pmap`, or under `jax.shard_map` with the same signature."""
    if kind == "pmap":
        return jax.pmap(function, axis_name="data", devices=jax.devices()[:num_devices])
    mesh = Mesh(np.array(jax.devices()[:num_devices]), ("data",))

    def local(*arguments):
        results = function(*(x[0] for x in arguments))
        return jax.tree.map(lambda x: x[None], results)

    return jax.jit(jax.shard_map(local, mesh=mesh, in_specs=P("data"), out_specs=P("data")))


@pytest.mark.parametrize("kind", ["pmap", "shard_map"])
@pytest.mark.parametrize("num_devices", DEVICES)
@pytest.mark.parametrize(
    ("total", "k", "approximate"), [(203, 7, False), (203, 60, False), (203, 7, True), (9, 9, None)]
)
def test_sharded_search(num_devices, total, k, approximate, kind):
    queries, table = integers(num_devices, 3, 8, seed=1), integers(total, 8)
    shards, _ = exact.shard_table(table, num_devices)
    assert shards.shape == (num_devices, -(-total // num_devices), 8)
    search = functools.partial(
        exact.sharded_top_k,
        k=k,
        num_rows=total,
        axis_name="data",
        chunk_size=32,
        approximate=approximate,
    )
    scores, rows = mapped(search, num_devices, kind)(queries, shards)
    assert rows.shape == (num_devices, 3, k)
    expected = slow_search(queries.reshape(-1, 8), table, k)
    if not approximate:
        np.testing.assert_array_equal(rows.reshape(-1, k), expected[1])
    np.testing.assert_array_equal(scores.reshape(-1, k), expected[0])


@pytest.mark.parametrize("kind", ["pmap", "shard_map"])
@pytest.mark.parametrize("num_devices", DEVICES)
def test_gather_rows(num_devices, kind):
    table = normal(203, 8)
    shards, _ = exact.shard_table(table, num_devices)
    rows = np.random.default_rng(0).integers(0, 203, (num_devices, 5, 2)).astype(np.int32)
    rows[0, 0] = 0, 202
    rows[0, 1] = -1
    lookup = functools.partial(exact.gather_rows, axis_name="data")
    found = np.asarray(mapped(lookup, num_devices, kind)(shards, rows))
    np.testing.assert_array_equal(found, np.where(rows[..., None] < 0, 0, table[rows]))


def sharded_int8(table, num_devices):
    """Values [N, E_local, D], scales [N, E_local], and the table they stand for."""
    stored, scale = quantize(table)
    padding = -len(table) % num_devices
    values = np.pad(stored, ((0, padding), (0, 0))).reshape(num_devices, -1, table.shape[1])
    scales = np.pad(scale, (0, padding)).reshape(num_devices, -1)
    return values, scales, stored * scale[:, None]


@pytest.mark.parametrize("num_devices", DEVICES)
def test_sharded_int8(num_devices):
    queries = normal(num_devices, 3, 8, seed=1)
    values, scales, table = sharded_int8(normal(203, 8), num_devices)

    def search(queries, shard, scale):
        scores, rows = exact.sharded_top_k(queries, shard, 7, 203, "data", scale, approximate=False)
        return scores, rows, exact.gather_rows(shard, rows, "data", scale)

    scores, rows, vectors = mapped(search, num_devices, "pmap")(queries, values, scales)
    assert_found((scores.reshape(-1, 7), rows.reshape(-1, 7)), queries.reshape(-1, 8), table, 7)
    np.testing.assert_allclose(vectors, table[np.asarray(rows)], rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("num_devices", DEVICES)
def test_shard_table(stored, num_devices, dtype):
    shards, scale = exact.shard_table(stored, num_devices, dtype)
    assert shards.dtype.name == dtype
    flat = shards.reshape(-1, 16)
    if dtype == "int8":
        values, factors = quantize(stored[:])
        np.testing.assert_array_equal(flat[:530], values)
        np.testing.assert_array_equal(scale.reshape(-1)[:530], factors)
    else:
        assert scale is None
        np.testing.assert_array_equal(flat[:530], stored[:].astype(shards.dtype))
    assert not flat[530:].any()
    # A process with some of the devices reads the rows of these only.
    one, one_scale = exact.shard_table(stored, num_devices, dtype, only=[num_devices - 1])
    np.testing.assert_array_equal(one[0], shards[-1])
    if dtype == "int8":
        np.testing.assert_array_equal(one_scale[0], scale[-1])


@pytest.mark.parametrize("dtype", [None, "bfloat16", "int8"])
@pytest.mark.parametrize("num_devices", DEVICES)
@pytest.mark.parametrize("num_queries", [1, 5, 70])
def test_sharded_index(stored, num_devices, dtype, num_queries):
    devices = jax.devices()[:num_devices]
    index = ShardedIndex(place_table(stored, devices, dtype), devices)
    assert index.shape == stored.shape == (530, 16)
    queries = normal(num_queries, 16, seed=3)
    # The table that the devices hold, searched by NumPy.
    values, scale = exact.shard_table(stored, 1, dtype)
    table = values[0].astype(np.float32) * (1 if scale is None else scale[0][:, None])
    assert_found(index.search(queries, 9), queries, table, 9)
    with pytest.raises(ElqError, match="k = 531"):
        index.search(queries, 531)


def test_sharded_search_refuses_k_above_the_rows():
    search = functools.partial(exact.sharded_top_k, k=8, num_rows=7, axis_name="data")
    with pytest.raises(ElqError, match="k = 8"):
        mapped(search, 2, "pmap")(normal(2, 1, 4), normal(2, 4, 4))
