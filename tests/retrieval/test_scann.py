"""ScaNN indexes against exact search, and what is refused."""

import errno
import hashlib
import json
import os
import shutil

import numpy as np
import pytest

from elq_jax.core.errors import DiskFullError, ElqError
from elq_jax.entities.embeddings import EmbeddingsWriter
from elq_jax.retrieval import open_index
from elq_jax.retrieval.exact import ExactIndex
from elq_jax.retrieval.scann import ScannIndex, ScannSettings

pytest.importorskip("scann")


def clustered(rows=3000, width=16, seed=0):
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(40, width))
    values = centres[generator.integers(0, 40, rows)] + 0.5 * generator.normal(size=(rows, width))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def nearest(queries, table, k):
    scores = queries @ table.T
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, rows, axis=1), rows


def build(table, method="auto", **settings):
    return ScannIndex.build(table, ScannSettings(method, **settings))


def recall(found, expected):
    return np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found, expected, strict=True)])


def assert_true_scores(found, queries, table):
    """Every row once, with its inner product, best first."""
    scores, rows = found
    assert scores.dtype == np.float32
    assert rows.dtype == np.int32
    for query, query_scores, query_rows in zip(queries, scores, rows, strict=True):
        assert len(set(query_rows)) == len(query_rows)
        np.testing.assert_allclose(query_scores, table[query_rows] @ query, rtol=1e-5, atol=1e-5)
        assert np.all(np.diff(query_scores) <= 0)


@pytest.fixture(scope="module")
def table():
    return clustered()


@pytest.fixture(scope="module")
def queries(table):
    return table[:70] + 0.1 * np.random.default_rng(1).normal(size=(70, 16)).astype(np.float32)


@pytest.fixture(scope="module")
def tree(table):
    return build(table, "tree_ah", num_leaves=60, leaves_to_search=30)


@pytest.mark.parametrize("k", [1, 10, 40])
@pytest.mark.parametrize("kind", ["brute_force", "ah", "tree_ah"])
def test_finds_what_exact_search_finds(table, queries, tree, kind, k):
    index = tree if kind == "tree_ah" else build(table, kind)
    found = index.search(queries, k)
    assert found[1].shape == (70, k)
    assert_true_scores(found, queries, table)
    expected = nearest(queries, table, k)
    if kind == "brute_force":
        np.testing.assert_array_equal(found[1], expected[1])
    assert recall(found[1], expected[1]) > 0.95


@pytest.mark.parametrize("k", [1, 40, 900])
@pytest.mark.parametrize("kind", ["brute_force", "ah", "tree_ah"])
def test_parts_find_what_exact_search_finds(tmp_path, stored, table, queries, kind, k):
    """Five parts of 600 rows, which cross the shards of 1000; also more rows than one part has."""
    leaves = {"num_leaves": 20, "leaves_to_search": 20 if k > 40 else 16}
    index = build(stored, kind, part_rows=700, **leaves)
    found = index.search(queries, k)
    assert_true_scores(found, queries, table)
    expected = nearest(queries, table, k)
    if kind == "brute_force":
        np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=1e-6)
    assert recall(found[1], expected[1]) > 0.95

    index.save(tmp_path / "index")
    opened = ScannIndex.open(tmp_path / "index", stored)
    for one, again in zip(found, opened.search(queries, k), strict=True):
        np.testing.assert_array_equal(one, again)
    assert len(list((tmp_path / "index").glob("part-*"))) == 5
    damaged = tmp_path / "index/part-00003/scann_config.pb"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(ElqError, match=r"part-00003/scann_config\.pb: missing or damaged"):
        ScannIndex.open(tmp_path / "index", stored)


def test_missing_neighbours_in_parts(table, queries):
    narrow = build(table, "tree_ah", part_rows=1500, num_leaves=30, leaves_to_search=1)
    found = narrow.search(queries, 400)  # a leaf has about 50 rows
    assert np.isfinite(found[0]).all()
    assert_true_scores(found, queries, table)


def test_missing_neighbours_are_looked_for_in_more_leaves(table, queries):
    narrow = build(table, "tree_ah", num_leaves=60, leaves_to_search=1)
    found = narrow.search(queries, 400)  # a leaf has about 50 rows
    assert np.isfinite(found[0]).all()
    assert_true_scores(found, queries, table)


@pytest.mark.parametrize("kind", ["brute_force", "ah", "tree_ah"])
def test_all_rows_can_be_asked_for(kind):
    table = clustered(200)
    index = build(table, kind)
    _, rows = index.search(table[:3], 200)
    np.testing.assert_array_equal(np.sort(rows), [range(200)] * 3)


def test_neighbours_that_stay_missing_are_reported(tree, table, monkeypatch):
    whole = tree._searcher.search_batched_parallel

    def incomplete(queries, **options):
        rows, scores = whole(queries, **options)
        scores[-1, -1] = np.nan
        return rows, scores

    monkeypatch.setattr(tree._searcher, "search_batched_parallel", incomplete)
    with pytest.raises(ElqError, match="fewer than k = 5 entities for query 2"):
        tree.search(table[:3], 5)


@pytest.mark.parametrize("rows", [1, 2, 17])
def test_few_entities(rows):
    table = clustered(rows)
    found = build(table).search(table[:1], rows)
    np.testing.assert_array_equal(found[1], nearest(table[:1], table, rows)[1])


def test_any_number_of_queries(tree, table):
    for count in (0, 1, 3, 600):
        scores, rows = tree.search(table[:count], 5)
        assert scores.shape == rows.shape == (count, 5)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_reordering_by_smaller_vectors(table, queries, dtype):
    index = build(table, "ah", reorder_dtype=dtype)
    scores, rows = index.search(queries, 10)
    expected = nearest(queries, table, 10)
    assert recall(rows, expected[1]) > 0.9
    np.testing.assert_allclose(scores, expected[0], atol=0.03)


def test_kind_is_chosen_by_size():
    kinds = {
        rows: ScannSettings().resolve(rows).method for rows in (19_999, 20_000, 100_000, 10**6)
    }
    assert list(kinds.values()) == ["brute_force", "ah", "ah", "tree_ah"]
    assert ScannSettings().resolve(10**6).num_leaves == 2000
    assert ScannSettings().resolve(10**6).leaves_to_search == 250
    assert ScannSettings(soar_lambda=None).resolve(10**6).leaves_to_search == 500


@pytest.fixture
def stored(tmp_path, table):
    return store(tmp_path / "embeddings", table)


def store(folder, table, encoder="e"):
    writer = EmbeddingsWriter(folder, *table.shape, "float32", 1000, "c", encoder)
    for shard in writer.missing_shards():
        writer.write_shard(shard, table[slice(*writer.shard_range(shard))])
    return writer.finish()


@pytest.mark.parametrize("kind", ["brute_force", "ah", "tree_ah"])
def test_saved_and_opened_elsewhere(tmp_path, stored, queries, kind):
    index = build(stored, kind, anisotropic_threshold=None)
    index.save(tmp_path / "old")
    (tmp_path / "old").rename(tmp_path / "new")
    opened = open_index(tmp_path / "new", stored)
    assert opened.name == "scann"
    assert opened.shape == (3000, 16)
    assert opened.settings.method == kind
    for found, expected in zip(opened.search(queries, 12), index.search(queries, 12), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_open_index_by_kind(tmp_path, stored, queries):
    folder = tmp_path / "index"
    assert open_index(folder, stored).name == "exact"
    with pytest.raises(ElqError, match=r"python -m elq_jax\.build_index --index scann"):
        open_index(folder, stored, "scann")
    with pytest.raises(ElqError, match=r"expected one of exact, .*scann, sharded"):
        open_index(folder, stored, "hnsw")
    build(stored, "brute_force").save(folder)
    assert [open_index(folder, stored, kind).name for kind in ("auto", "exact", "scann")] == [
        "scann",
        "exact",
        "scann",
    ]
    exact, scann = (open_index(folder, stored, kind) for kind in ("exact", "scann"))
    np.testing.assert_array_equal(exact.search(queries, 9)[1], scann.search(queries, 9)[1])


def test_index_of_other_embeddings_is_refused(tmp_path, stored, table):
    build(stored, "brute_force").save(tmp_path / "index")
    other = store(tmp_path / "other", table, "another encoder")
    with pytest.raises(ElqError, match="other embeddings"):
        ScannIndex.open(tmp_path / "index", other)
    build(table, "brute_force").save(tmp_path / "of_array")
    ScannIndex.open(tmp_path / "of_array", table)
    with pytest.raises(ElqError, match="other embeddings"):
        ScannIndex.open(tmp_path / "of_array", table + 1)


def test_damage_is_noticed(tmp_path, tree, table):
    folder = tmp_path / "index"
    tree.save(folder)
    for name in sorted(os.listdir(folder)):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[:-7])
        with pytest.raises(ElqError, match=rf"{name}.*damaged.*build_index"):
            ScannIndex.open(folder, table)
        (folder / name).write_bytes(whole)
    (folder / "dataset.npy").unlink()
    with pytest.raises(ElqError, match=r"dataset\.npy: missing"):
        ScannIndex.open(folder, table)
    (folder / "index.json").write_text(json.dumps({"format": "version 7"}))
    with pytest.raises(ElqError, match="version 7"):
        ScannIndex.open(folder, table)
    (folder / "index.json").unlink()
    with pytest.raises(ElqError, match="no scann index here"):
        ScannIndex.open(folder, table)


def test_saving_replaces_an_index_and_nothing_else(tmp_path, tree, table):
    build(table, "brute_force").save(tmp_path / "index")
    tree.save(tmp_path / "index")
    assert ScannIndex.open(tmp_path / "index", table).settings.method == "tree_ah"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(ElqError, match="not an index"):
        tree.save(tmp_path / "mine")
    assert sorted(os.listdir(tmp_path)) == ["index", "mine"]


def test_interrupted_saving_leaves_the_old_index(tmp_path, tree, table, monkeypatch):
    build(table, "brute_force").save(tmp_path / "index")

    def full(*_, **__):
        raise RuntimeError("No space left on device")

    monkeypatch.setattr(tree._searcher, "serialize", full)
    with pytest.raises(ElqError, match="index: not written, the disk is full"):
        tree.save(tmp_path / "index")
    assert os.listdir(tmp_path) == ["index"]
    assert ScannIndex.open(tmp_path / "index", table).settings.method == "brute_force"


def test_bad_queries_and_tables(tree, table):
    broken = table.copy()
    broken[5, 2] = np.nan
    for search in (tree.search, ExactIndex(table).search):
        with pytest.raises(ElqError, match="queries: row 5 holds NaN"):
            search(broken[:9], 3)
        with pytest.raises(ElqError, match=r"expected \(Q, 16\)"):
            search(table[:, :7], 3)
        with pytest.raises(ElqError, match="k = 3001"):
            search(table[:1], 3001)
        with pytest.raises(ElqError, match="k = 0"):
            search(table[:1], 0)
    with pytest.raises(ElqError, match="row 5 holds NaN"):
        build(broken)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "hnsw"}, "method: 'hnsw'; expected one of auto, brute_force, ah, tree_ah"),
        ({"method": "tree_ah", "num_leaves": 3001}, "num_leaves: 3001; expected 1 to 3000"),
        ({"method": "tree_ah", "num_leaves": 5, "leaves_to_search": 6}, "leaves_to_search: 6"),
        ({"reorder": 0}, "reorder: 0; expected `int` >= 1"),
        ({"part_rows": 0}, "part_rows: 0; expected"),
        ({"reorder_dtype": "float16"}, "reorder_dtype: 'float16'"),
    ],
)
def test_bad_settings(table, settings, message):
    with pytest.raises(ElqError, match=message):
        build(table, **settings)


def test_what_scann_refuses_is_explained():
    with pytest.raises(ElqError, match="cannot build a tree_ah index over 5 rows"):
        build(clustered(5), "tree_ah", num_leaves=2)


def test_paths_that_are_not_utf8(tmp_path, stored, queries):
    folder = tmp_path / os.fsdecode(b"caf\xe9") / "index"
    off = float("nan")  # may be written so, as ScaNN does
    for settings in (
        ScannSettings("brute_force"),
        ScannSettings("ah", part_rows=1500, anisotropic_threshold=off),
    ):
        index = ScannIndex.build(stored, settings)
        index.save(folder)
        np.testing.assert_array_equal(
            ScannIndex.open(folder, stored).search(queries, 5)[1], index.search(queries, 5)[1]
        )


def test_full_disk_that_scann_calls_an_input_error(tmp_path, tree, monkeypatch):
    def full(*_, **__):
        raise RuntimeError("Failed to extract SingleMachineFactoryOptions: I/O error")

    def no_room(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tree._searcher, "serialize", full)
    with pytest.raises(ElqError, match=r"index: the index cannot be written \(Failed to extract"):
        tree.save(tmp_path / "index")
    monkeypatch.setattr(os, "posix_fallocate", no_room)
    with pytest.raises(DiskFullError, match="index: not written, the disk is full"):
        tree.save(tmp_path / "index")
    assert not os.listdir(tmp_path)


def _damage_nothing(folder):
    del folder


def _write_pickle(folder):
    """ScaNN itself would unpickle this, which makes a file."""
    made = folder.parent / "made"
    (folder / "scann_docids.pkl").write_bytes(f"cos\nmkdir\n(V{made}\ntR.".encode())


def _elsewhere(folder):
    shutil.copytree(folder, folder.parent / "elsewhere")
    path = folder / "scann_assets.pbtxt"
    path.write_text(path.read_text().replace('path: "', 'path: "../elsewhere/'))


def _resave(name, change):
    def damage(folder):
        np.save(folder / name, change(np.load(folder / name)))

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_damage_nothing, None),
        (_write_pickle, r"scann_docids\.pkl: no file of a ScaNN index; remove it"),
        (_elsewhere, r"scann_assets\.pbtxt: names '\.\./elsewhere/\S+', which is not beside it"),
        (lambda folder: (folder / "scann_assets.pbtxt").unlink(), r"scann_assets\.pbtxt: missing"),
        (
            lambda folder: (folder / "ah_codebook.pb").write_bytes(b""),
            "ScaNN cannot open this index",
        ),
        (lambda folder: (folder / "dataset.npy").write_bytes(b""), r"dataset\.npy: damaged"),
        (_resave("dataset.npy", lambda x: x[:-1]), r"dataset\.npy: of shape .*, expected"),
        (_resave("hashed_dataset.npy", lambda x: x[:, 1:]), r"hashed_dataset\.npy: of shape"),
        (_resave("dataset.npy", lambda x: x.astype(object)), "memory-mapped: Python objects"),
    ],
)
def test_hostile_files_with_right_checksums(tmp_path, stored, damage, message):
    """Whoever writes a linker for others writes its checksums too."""
    folder = tmp_path / "index"
    build(stored, "ah").save(folder)
    damage(folder)
    path = folder / "index.json"
    content = json.loads(path.read_text())
    files = [file for file in folder.iterdir() if file != path]
    content["sha256"] = {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files}
    path.write_text(json.dumps(content))
    if message is None:
        ScannIndex.open(folder, stored)
        return
    with pytest.raises(ElqError, match=message):
        ScannIndex.open(folder, stored)
    assert not (tmp_path / "made").exists()


def test_index_from_before_leaves_were_doubled(tmp_path, table, queries):
    """Its index.json does not name the settings of SOAR, and an entity is in one leaf."""
    index = build(table, "tree_ah", num_leaves=60, soar_lambda=None, avq_eta=None)
    assert index.settings.leaves_to_search == 15
    index.save(tmp_path / "index")
    path = tmp_path / "index" / "index.json"
    content = json.loads(path.read_text())
    for name in ("soar_lambda", "avq_eta"):
        del content["settings"][name]
    path.write_text(json.dumps(content))
    opened = ScannIndex.open(tmp_path / "index", table)
    assert opened.settings == index.settings
    np.testing.assert_array_equal(opened.search(queries, 5)[1], index.search(queries, 5)[1])


def test_index_of_the_first_format(tmp_path, stored, queries):
    """index.json as it was when there was only ScaNN, with a setting that is off as null."""
    index = build(stored, "ah", part_rows=1500, anisotropic_threshold=None)
    index.save(tmp_path / "index")
    path = tmp_path / "index" / "index.json"
    content = json.loads(path.read_text())
    content["format"] = "elq_jax ScaNN index, version 1"
    assert content.pop("index") == "scann"
    content["kind"] = "scann"
    settings = content["settings"]
    settings["kind"] = settings.pop("method")
    del settings["part_rows"]
    settings["num_leaves"], settings["leaves_to_search"] = 77, 20  # given even where unused
    path.write_text(json.dumps(content))
    opened = open_index(tmp_path / "index", stored)
    assert (opened.name, opened.settings.method) == ("scann", "ah")
    np.testing.assert_array_equal(opened.search(queries, 5)[1], index.search(queries, 5)[1])
    content["parts"] = 10**9
    path.write_text(json.dumps(content))
    with pytest.raises(ElqError, match="parts: 1000000000; there are 2"):
        open_index(tmp_path / "index", stored)
