"""Indexes as such: one of a person's own in one file, what is saved, and what is refused."""

import dataclasses
import json
import os
import re
import subprocess
import sys
import textwrap
import warnings

import numpy as np
import pytest
from tiny import tiny_linker_directory

from elq_jax.core.errors import ElqError
from elq_jax.entities.embeddings import Embeddings
from elq_jax.linking.linker import EntityLinker
from elq_jax.retrieval import INDEXES, open_index
from elq_jax.retrieval.base import NoSettings
from elq_jax.retrieval.exact import ExactIndex
from elq_jax.storage import layout

OWN = '''
import dataclasses
from typing import Annotated, Literal

import msgspec
import numpy as np

from elq_jax.retrieval.base import INDEXES, Index


@INDEXES.register("rounded")
class Rounded(Index):
    @dataclasses.dataclass(frozen=True)
    class Settings:
        """How vectors are stored.

        Attributes:
          dtype: number format of the
            vectors.
          digits: number of digits kept; none: all.
          seed: number that nothing depends on.
          reverse: whether the rows are stored backwards.
        """

        dtype: Literal["float32", "float16"] = "float32"
        digits: Annotated[int, msgspec.Meta(ge=1)] | None = 7
        seed: int = 0
        reverse: bool = False

    def __init__(self, embeddings, settings, table):
        super().__init__(embeddings, settings)
        self.table = table

    @classmethod
    def build(cls, embeddings, settings=None, *, devices=None):
        settings = settings or cls.Settings()
        table = embeddings[:]
        if settings.digits is not None:
            table = np.round(table, settings.digits)
        return cls(embeddings, settings, table.astype(settings.dtype))

    def nearest(self, queries, k):
        scores = queries @ self.table.T.astype(np.float32)
        rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(scores, rows, axis=1), rows

    def write(self, folder):
        np.save(folder / "table.npy", self.table)

    @classmethod
    def read(cls, folder, embeddings, settings):
        return cls(embeddings, settings, np.load(folder / "table.npy"))
'''


@pytest.fixture(scope="module")
def linker(tmp_path_factory):
    return tiny_linker_directory(tmp_path_factory.mktemp("linker"), threshold=-6.0)


@pytest.fixture(scope="module")
def embeddings(linker):
    return Embeddings.open(linker / layout.EMBEDDINGS)


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """The folder of a module with an index; only those that import it by name know it."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_index.py").write_text(textwrap.dedent(OWN))
    return folder


@pytest.fixture
def rounded(own, monkeypatch):
    monkeypatch.syspath_prepend(own)
    return INDEXES.get("own_index:rounded")


def run(program, *arguments, path):
    return subprocess.run(
        [sys.executable, "-m", f"elq_jax.{program}", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "ELQ_JAX_CACHE": "", "COLUMNS": "100", "PYTHONPATH": f"{path}:."},
    )


def test_an_index_of_ones_own_is_built_and_linked_with(own, linker, embeddings, monkeypatch):
    """From one file: flags of build_index, the index on disk, and links through it."""
    done = run(
        *("build_index", "--linker", linker, "--index", "own_index:rounded", "--reverse"),
        *("--dtype=float16", "--digits=none", "--index_seed=5", "--seed=3", "--seconds=0"),
        path=own,
    )
    assert done.returncode == 0, done.stderr
    assert "own_index:rounded" in done.stdout
    written = json.loads((linker / layout.INDEX / "index.json").read_text())
    settings = {"dtype": "float16", "digits": None, "seed": 5, "reverse": True}
    assert (written["index"], written["settings"]) == ("own_index:rounded", settings)
    report = json.loads((linker / layout.INDEX / "report.json").read_text())
    assert report["own_index:rounded"]["recall"]["10"] > 0.9
    assert report["own_index:rounded"]["settings"] == settings

    # A file alone makes nobody import a module.
    if not INDEXES.is_known("own_index:rounded"):
        with pytest.warns(UserWarning, match="'own_index:rounded' is not part of elq_jax"):
            assert open_index(linker / layout.INDEX, embeddings).name in ("exact", "sharded")
    monkeypatch.syspath_prepend(own)
    linking = EntityLinker.from_pretrained(linker, index="own_index:rounded")
    assert linking.index.table.dtype == np.float16
    assert linking.index.settings == INDEXES.get("own_index:rounded").Settings(**settings)
    exact = EntityLinker.from_pretrained(linker, index="exact")
    texts = ["who played thor in the avengers", "where was obama born"]
    found, expected = linking(texts), exact(texts)
    assert sum(map(len, expected)) > 0
    for links, others in zip(found, expected, strict=True):
        assert [link.start for link in links] == [link.start for link in others]
        np.testing.assert_allclose(
            [link.score for link in links], [link.score for link in others], atol=0.02
        )
    assert EntityLinker.from_pretrained(linker).index.name == "own_index:rounded"  # known by now


def test_help_shows_the_settings_of_the_index(own):
    done = run("build_index", "--index=own_index:rounded", "--help", path=own)
    shown = re.sub(r"\s+", " ", done.stdout)
    assert "--dtype: <float32|float16>: Number format of the vectors." in shown
    assert "--index_seed" in shown
    assert "--num_leaves" not in shown


def test_wrong_settings_on_the_command_line(own, linker):
    for arguments, message in (
        (("--index=own_index:rounded", "--digits=0"), "--digits=0: expected `int` >= 1"),
        (("--index=own_index:rounded", "--dtype=int8"), "expected one of float32, float16"),
        (("--index=hnsw",), "index: 'hnsw'; expected one of exact, scann, sharded"),
        (("--index=no_such_module:x",), "No module named 'no_such_module'"),
        (("--method=hnsw",), "expected one of auto, brute_force, ah, tree_ah"),
    ):
        done = run("build_index", "--linker", linker, *arguments, path=own)
        assert done.returncode == 2, done.stderr
        assert message in done.stderr
        assert "Traceback" not in done.stderr


def test_saved_and_opened(rounded, embeddings, tmp_path):
    settings = rounded.Settings(digits=3)
    built = rounded.build(embeddings, settings)
    built.save(tmp_path / "index")
    opened = rounded.open(tmp_path / "index", embeddings)
    assert opened.settings == settings
    queries = embeddings[:20]
    for found, expected in zip(opened.search(queries, 7), built.search(queries, 7), strict=True):
        np.testing.assert_array_equal(found, expected)
    scores, rows = built.search(np.zeros((0, embeddings.shape[1])), 7)
    assert scores.shape == rows.shape == (0, 7)
    assert (scores.dtype, rows.dtype) == (np.float32, np.int32)
    with pytest.raises(ElqError, match="found a own_index:rounded index, expected scann"):
        open_index(tmp_path / "index", embeddings, "scann")
    with pytest.raises(ElqError, match="digits: 0; expected"):
        rounded.build(embeddings, rounded.Settings(digits=0))


def test_saving_follows_links_and_replaces_indexes_only(rounded, embeddings, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "index").symlink_to(tmp_path / "disk")
    for digits in (2, 3):
        rounded.build(embeddings, rounded.Settings(digits=digits)).save(tmp_path / "index")
    assert (tmp_path / "index").is_symlink()
    assert rounded.open(tmp_path / "disk", embeddings).settings.digits == 3
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(ElqError, match="mine: exists and is not an index"):
        rounded.build(embeddings).save(tmp_path / "mine")
    with pytest.raises(ElqError, match="has no files, since it is built"):
        ExactIndex(embeddings).save(tmp_path / "exact")
    assert sorted(os.listdir(tmp_path)) == ["disk", "index", "mine"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sha256": {}}, "length >= 1.*sha256"),
        ({"sha256": None}, "`object`.*sha256"),
        ({"sha256": {"other.npy": "0"}}, r"other\.npy: missing or damaged"),
        ({"sha256": {"table.npy": None}}, "`str`"),
        ({"sha256": {"../index/table.npy": "0"}}, "missing or damaged"),
        ({"parts": 10**9}, r"parts: 1000000000; there are 1"),
        ({"parts": True}, "got `bool`"),
        ({"parts": 0}, "`int` >= 1"),
        ({"shape": [10**13, 16]}, "other embeddings"),
        ({"shape": [10**13]}, "length 2"),
        ({"shape": [-1, 16]}, "`int` >= 1"),
        ({"shape": ["500", 16]}, "`int`"),
        ({"settings": {"digits": 1e9}}, r"settings: digits: 1000000000\.0; expected"),
        ({"settings": {"digit": 3}}, "did you mean digits"),
        ({"settings": []}, "`object`"),
        ({"index": 3}, "`str`"),
        ({"embeddings": "0" * 32}, "other embeddings"),
        ({"format": "elq_jax index, version 9"}, "version 9"),
        ({"extra": 1}, "unknown field `extra`"),
    ],
)
def test_descriptions_that_are_refused_at_once(rounded, embeddings, tmp_path, change, message):
    rounded.build(embeddings).save(tmp_path / "index")
    path = tmp_path / "index" / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ElqError, match=message) as caught:
        rounded.open(tmp_path / "index", embeddings)
    assert str(tmp_path / "index") in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"[]", b"7", b"\xff\xfe{}", b'{"format": ', b"null"])
def test_what_is_no_description(rounded, embeddings, tmp_path, content):
    rounded.build(embeddings).save(tmp_path / "index")
    (tmp_path / "index" / "index.json").write_bytes(content)
    with pytest.raises(ElqError, match=r"index\.json: damaged .*build_index"):
        rounded.open(tmp_path / "index", embeddings)


def test_files_without_a_digest_are_not_trusted(rounded, embeddings, tmp_path):
    rounded.build(embeddings).save(tmp_path / "index")
    for name in (".DS_Store", "report.json"):
        (tmp_path / "index" / name).write_text("{}")
    rounded.open(tmp_path / "index", embeddings)
    (tmp_path / "index" / "more.npy").write_text("")
    with pytest.raises(ElqError, match=r"more\.npy: index\.json has no digest of it"):
        rounded.open(tmp_path / "index", embeddings)


def test_a_folder_of_an_index_that_is_a_symbolic_link(rounded, embeddings, tmp_path):
    """The files behind it would have no checksums."""
    rounded.build(embeddings).save(tmp_path / "index")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "index" / "part-00000").symlink_to("../elsewhere")
    with pytest.raises(ElqError, match="part-00000: a symbolic link, expected a file or folder"):
        rounded.open(tmp_path / "index", embeddings)


def test_index_without_files_is_built_when_it_is_opened(embeddings, tmp_path):
    for name in ("exact", "sharded"):
        index = open_index(tmp_path / "nothing", embeddings, name)
        _, rows = index.search(embeddings[:5], 1)
        np.testing.assert_array_equal(rows[:, 0], np.arange(5))
        assert index.settings == NoSettings()
    assert open_index(tmp_path / "nothing", embeddings, "sharded").name == "sharded"


@pytest.mark.filterwarnings("error")
def test_scann_that_is_not_installed(embeddings, tmp_path, monkeypatch):
    """The saved index is left alone with one warning, but not if it was asked for by name."""
    scann = pytest.importorskip("scann")
    INDEXES.get("scann").build(embeddings).save(tmp_path / "index")
    monkeypatch.setitem(sys.modules, "scann", None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        index = open_index(tmp_path / "index", embeddings)
    [warning] = caught
    assert re.search("ScaNN is not usable here .*; searching exactly$", str(warning.message))
    assert index.name == "exact"
    np.testing.assert_array_equal(index.search(embeddings[:5], 1)[1][:, 0], np.arange(5))
    open_index(tmp_path / "index", embeddings, "exact")
    with pytest.raises(ElqError, match="ScaNN is not usable here"):
        open_index(tmp_path / "index", embeddings, "scann")
    monkeypatch.setitem(sys.modules, "scann", scann)
    assert open_index(tmp_path / "index", embeddings).name == "scann"


def test_settings_are_frozen_dataclasses():
    for name in INDEXES.names:
        settings = INDEXES.get(name).Settings
        assert dataclasses.is_dataclass(settings)
        with pytest.raises(dataclasses.FrozenInstanceError):
            settings().method = "x"


def test_a_name_of_another_module_is_no_index():
    """The module can be imported, and registers nothing: the names that there are are told."""
    with pytest.raises(ElqError, match=r"index: 'os:getcwd'; expected one of exact, .*scann"):
        INDEXES.get("os:getcwd")
