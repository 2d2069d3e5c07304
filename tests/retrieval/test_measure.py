"""Recall, speed and comparison of indexes against counting by hand."""

import numpy as np
import pytest

from elq_jax.core.errors import ElqError
from elq_jax.entities.embeddings import EmbeddingsWriter
from elq_jax.retrieval import measure


def test_recall_counts_the_first_k_only():
    """Rows beyond k, found or exact, change nothing; order within k does not matter."""
    exact = np.array([[0, 1, 2, 3], [4, 5, 6, 7]])
    found = np.array([[1, 9, 0, 2], [8, 4, 5, 6]])
    assert measure.recall(found, exact, 1) == 0
    assert measure.recall(found, exact, 2) == (1 + 1) / 4
    assert measure.recall(found, exact, 3) == (2 + 2) / 6
    assert measure.recall(found[:, :2], exact, 2) == measure.recall(found, exact, 2)
    assert measure.recall(found, exact[:, :3], 3) == measure.recall(found, exact, 3)


@pytest.mark.parametrize("k", [1, 3, 7])
def test_recall_equals_a_slow_loop(k):
    rng = np.random.default_rng(k)
    found = np.stack([rng.permutation(12)[:9] for _ in range(30)])
    exact = np.stack([rng.permutation(12)[:7] for _ in range(30)])
    hits = 0
    for a, b in zip(found.tolist(), exact.tolist(), strict=True):
        hits += sum(row in b[:k] for row in a[:k])
    assert measure.recall(found, exact, k) == pytest.approx(hits / (30 * k))


@pytest.fixture
def embeddings(tmp_path):
    values = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    writer = EmbeddingsWriter(tmp_path / "embeddings", 60, 4, "float32", 25)
    for shard in writer.missing_shards():
        writer.write_shard(shard, values[slice(*writer.shard_range(shard))])
    return writer.finish()


def test_comparing_the_exact_index_builds_nothing(embeddings, tmp_path, capsys):
    report = measure.compare(embeddings, embeddings[:5], "exact", seconds=0, about={"queries": "q"})
    assert report["exact"]["recall"] == {"1": 1.0, "10": 1.0}
    assert set(report["exact"]["queries_per_second"]) == {"1", "5"}
    assert (report["rows"], report["width"], report["queries"]) == (60, 4, "q")
    assert [path.name for path in tmp_path.iterdir()] == ["embeddings"]
    assert "measuring the speed of exact, 5 at a time" in capsys.readouterr().err


def test_comparing_in_memory_and_on_disk(embeddings, tmp_path):
    pytest.importorskip("scann")
    loose = measure.compare(embeddings, embeddings[:9], "scann", seconds=0)
    saved = measure.compare(embeddings, embeddings[:9], "scann", folder=tmp_path / "i", seconds=0)
    assert loose["scann"]["recall"] == saved["scann"]["recall"] == {"1": 1.0, "10": 1.0}
    assert "bytes" not in loose["scann"]
    files = [path for path in (tmp_path / "i").iterdir() if path.name != "report.json"]
    assert saved["scann"]["bytes"] == sum(path.stat().st_size for path in files)


@pytest.mark.parametrize(
    ("queries", "message"), [(np.zeros((0, 4)), "at least one"), (np.ones((3, 5)), r"\(Q, 4\)")]
)
def test_queries_that_measure_nothing(embeddings, queries, message):
    with pytest.raises(ElqError, match=message):
        measure.compare(embeddings, queries, "exact")
