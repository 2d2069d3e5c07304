"""Tables on one device and on several against a stable sort of the full score matrix in NumPy."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from slow_search import assert_found, integers, normal, slow_search

from elq_jax.core.devices import AXIS
from elq_jax.core.errors import ElqError
from elq_jax.entities.embeddings import EmbeddingsWriter, Shard, quantize
from elq_jax.retrieval.sharded import ShardedIndex
from elq_jax.retrieval.table import Table

DEVICES = [1, 2, 8]


def whole(values, scale=None, num_rows=None):
    """A table on one device."""
    return Table(values, scale, num_rows or len(values), axis_name=None)


def search(queries, table, k, chunk_size):
    return table.nearest(queries, k, chunk_size)


search_jit = jax.jit(search, static_argnums=(2, 3))


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
    found = search_jit(queries, whole(table), k, chunk_size)
    assert found[0].dtype == np.float32
    assert found[1].dtype == np.int32
    assert_found(found, queries, table, k)


@pytest.mark.parametrize("num_rows", [5, 6, 40, 99])
def test_rows_beyond_num_rows_do_not_count(num_rows):
    queries, table = integers(4, 8, seed=1), integers(100, 8)
    found = search_jit(queries, whole(table, num_rows=num_rows), 5, 32)
    assert_found(found, queries, table[:num_rows], 5)


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
    found = whole(jnp.asarray(stored), scale).nearest(queries, 9, chunk_size)
    assert_found(found, queries, table, 9)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "uint16", "int8"])
def test_products_in_bfloat16(dtype):
    """Scores are those of rounded operands, and of nothing else that is rounded."""
    queries, vectors = normal(3, 16, seed=1), normal(500, 16)
    shard = Shard(0, vectors).astype("int8") if dtype == "int8" else Shard(0, vectors)
    values = shard.values if dtype == "int8" else vectors.astype(ml_dtypes.bfloat16)
    rounded = values.astype(np.float32) * (1 if shard.scale is None else shard.scale[:, None])
    if dtype == "uint16":
        values = values.view(np.uint16)
    table = Table(
        vectors if dtype == "float32" else values,
        shard.scale,
        500,
        axis_name=None,
        products="bfloat16",
    )
    found = table.nearest(queries, 7, 128, approximate=False)
    assert_found(found, queries.astype(ml_dtypes.bfloat16).astype(np.float32), rounded, 7)


def test_memory_is_bounded_by_the_chunk():
    arguments = jnp.zeros((256, 8)), whole(jnp.zeros((200_000, 8)))
    compiled = search_jit.lower(*arguments, 10, 8192).compile()
    used = compiled.memory_analysis().temp_size_in_bytes
    assert used < 4 * 256 * 8192 * 4  # all scores would be 205 MB, four chunks are 34 MB


@pytest.fixture(params=["float32", "bfloat16", "int8"])
def stored(request, tmp_path):
    values = normal(530, 16)
    writer = EmbeddingsWriter(tmp_path, 530, 16, request.param, shard_rows=100)
    for shard in writer.missing_shards():
        writer.write_shard(shard, values[slice(*writer.shard_range(shard))])
    return writer.finish()


def mapped(function, num_devices, kind="pmap"):
    """The function under `jax.pmap`, or under `jax.shard_map` with the same signature."""
    if kind == "pmap":
        return jax.pmap(function, axis_name=AXIS, devices=jax.devices()[:num_devices])
    mesh = Mesh(np.array(jax.devices()[:num_devices]), (AXIS,))

    def local(*arguments):
        results = function(*jax.tree.map(lambda x: x[0], arguments))
        return jax.tree.map(lambda x: x[None], results)

    return jax.jit(jax.shard_map(local, mesh=mesh, in_specs=P(AXIS), out_specs=P(AXIS)))


@pytest.mark.parametrize("kind", ["pmap", "shard_map"])
@pytest.mark.parametrize("num_devices", DEVICES)
@pytest.mark.parametrize(
    ("total", "k", "approximate"), [(203, 7, False), (203, 60, False), (203, 7, True), (9, 9, None)]
)
def test_nearest_on_several_devices(num_devices, total, k, approximate, kind):
    queries, vectors = integers(num_devices, 3, 8, seed=1), integers(total, 8)
    table = Table.divide(vectors, num_devices)
    assert table.values.shape == (num_devices, -(-total // num_devices), 8)

    def nearest(queries, table):
        return table.nearest(queries, k, 32, approximate)

    scores, rows = mapped(nearest, num_devices, kind)(queries, table)
    assert rows.shape == (num_devices, 3, k)
    expected = slow_search(queries.reshape(-1, 8), vectors, k)
    if not approximate:
        np.testing.assert_array_equal(rows.reshape(-1, k), expected[1])
    np.testing.assert_array_equal(scores.reshape(-1, k), expected[0])


@pytest.mark.parametrize("kind", ["pmap", "shard_map"])
@pytest.mark.parametrize("num_devices", DEVICES)
def test_gather(num_devices, kind):
    vectors = normal(203, 8)
    rows = np.random.default_rng(0).integers(0, 203, (num_devices, 5, 2)).astype(np.int32)
    rows[0, 0] = 0, 202
    rows[0, 1] = -1
    table = Table.divide(vectors, num_devices)
    found = mapped(lambda rows, table: table.gather(rows), num_devices, kind)(rows, table)
    np.testing.assert_array_equal(found, np.where(rows[..., None] < 0, 0, vectors[rows]))


@pytest.mark.parametrize("num_devices", DEVICES)
def test_int8_on_several_devices(num_devices):
    queries, vectors = normal(num_devices, 3, 8, seed=1), normal(203, 8)
    values, scale = quantize(vectors)
    vectors = values * scale[:, None]

    def search(queries, table):
        scores, rows = table.nearest(queries, 7, approximate=False)
        return scores, rows, table.gather(rows)

    table = Table.divide(vectors, num_devices, "int8")
    scores, rows, gathered = mapped(search, num_devices)(queries, table)
    assert_found((scores.reshape(-1, 7), rows.reshape(-1, 7)), queries.reshape(-1, 8), vectors, 7)
    np.testing.assert_allclose(gathered, vectors[np.asarray(rows)], rtol=1e-6)


@pytest.mark.parametrize("chunk_size", [1, 7, 16, 53, 1000])
def test_log_normalizer_is_that_of_all_entities(chunk_size):
    queries, vectors = normal(6, 8, seed=1), normal(53, 8)

    def total(queries, table):
        return table.log_normalizer(queries, chunk_size).sum()

    gradient = jax.grad(total)(queries, whole(vectors))
    found = whole(vectors).log_normalizer(queries, chunk_size)
    logits = queries.astype(np.float64) @ vectors.T
    np.testing.assert_allclose(found, np.log(np.exp(logits).sum(axis=1)), rtol=1e-5)
    probability = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(gradient, probability @ vectors, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("num_devices", [1, 3, 8])
def test_log_normalizer_on_several_devices(num_devices, dtype):
    """53 rows divide by neither 3 nor 8; queries and their weights differ between devices."""
    queries, weights = normal(num_devices, 6, 8, seed=1), normal(num_devices, 6, seed=2)
    table = Table.divide(normal(53, 8), num_devices, dtype)

    def total(queries, table, weights):
        normalizer = table.log_normalizer(queries, 3)
        return (normalizer * weights).sum(), normalizer

    gradient, found = mapped(jax.grad(total, has_aux=True), num_devices)(queries, table, weights)
    vectors = table.values.astype(np.float64).reshape(-1, 8)[:53]
    if table.scale is not None:
        vectors = vectors * table.scale.reshape(-1)[:53, None]
    logits = queries.astype(np.float64) @ vectors.T
    expected = np.log(np.exp(logits).sum(axis=-1))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    probability = np.exp(logits - expected[..., None]) * weights[..., None]
    np.testing.assert_allclose(gradient, probability @ vectors, atol=1e-5)


def test_log_normalizer_holds_no_matrix_of_all_entities():
    """The largest temporary of the compiled gradient is bounded by the chunk, not by E."""
    queries, rows = normal(6, 8), 200_000
    table = whole(jax.ShapeDtypeStruct((rows, 8), jnp.float32), num_rows=rows)

    def total(queries, table):
        return table.log_normalizer(queries, 1000).sum()

    compiled = jax.jit(jax.grad(total)).lower(queries, table).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 6 * rows * 4 / 4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("num_devices", DEVICES)
def test_divide(stored, num_devices, dtype):
    table = Table.divide(stored, num_devices, dtype)
    assert table.shape == (530, 16)
    assert table.values.dtype.name == dtype
    flat = table.values.reshape(-1, 16)
    if dtype == "int8":
        values, factors = quantize(stored[:])
        np.testing.assert_array_equal(flat[:530], values)
        np.testing.assert_array_equal(table.scale.reshape(-1)[:530], factors)
    else:
        assert table.scale is None
        np.testing.assert_array_equal(flat[:530], stored[:].astype(table.values.dtype))
    assert not flat[530:].any()
    # A process with some of the devices reads the rows of these only.
    last = Table.divide(stored, num_devices, dtype, only=[num_devices - 1])
    np.testing.assert_array_equal(last.values[0], table.values[-1])
    if dtype == "int8":
        np.testing.assert_array_equal(last.scale[0], table.scale[-1])


@pytest.mark.parametrize("dtype", [None, "bfloat16", "int8"])
@pytest.mark.parametrize("num_devices", DEVICES)
@pytest.mark.parametrize("num_queries", [1, 5, 70])
def test_sharded_index(stored, num_devices, dtype, num_queries):
    devices = jax.devices()[:num_devices]
    index = ShardedIndex(Table.place(stored, devices, dtype), devices)
    assert index.shape == stored.shape == (530, 16)
    queries = normal(num_queries, 16, seed=3)
    # The table that the devices hold, searched by NumPy.
    table = Table.divide(stored, 1, dtype)
    factors = 1 if table.scale is None else table.scale[0][:, None]
    vectors = table.values[0].astype(np.float32) * factors
    assert_found(index.search(queries, 9), queries, vectors, 9)
    with pytest.raises(ElqError, match="k = 531"):
        index.search(queries, 531)


def test_wrong_arguments():
    table = whole(normal(20, 4))
    for k in (0, 21, -1):
        with pytest.raises(ElqError, match=f"k = {k}: expected 1 <= k <= 20"):
            table.nearest(normal(2, 4), k)
    with pytest.raises(ElqError, match="found width 5, expected 4"):
        table.nearest(normal(2, 5), 3)
    with pytest.raises(ElqError, match="chunk_size = 0"):
        table.nearest(normal(2, 4), 3, 0)
    with pytest.raises(ElqError, match="k = 8: expected 1 <= k <= 7"):
        mapped(lambda queries, table: table.nearest(queries, 8), 2)(
            normal(2, 1, 4), Table.divide(normal(7, 4), 2)
        )
