"""The program `build_index`: what it writes, prints and refuses."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from tiny import tiny_linker_directory

from elq_jax.core.errors import ElqError
from elq_jax.entities.embeddings import EmbeddingsWriter
from elq_jax.evaluation.indexes import Queries, build_and_compare
from elq_jax.retrieval import measure, open_index

pytest.importorskip("scann")


@pytest.fixture(scope="module")
def linker(tmp_path_factory):
    """What build_index needs of a linker directory."""
    folder = tmp_path_factory.mktemp("linker")
    values = np.random.default_rng(0).normal(size=(900, 8)).astype(np.float32)
    writer = EmbeddingsWriter(folder / "embeddings", 900, 8, "float32", 400, "c", "e")
    for shard in writer.missing_shards():
        writer.write_shard(shard, values[slice(*writer.shard_range(shard))])
    return folder


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "elq_jax.build_index", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "ELQ_JAX_CACHE": "", "COLUMNS": "100", "PYTHONWARNINGS": "ignore"},
    )


def test_builds_measures_and_reports(linker):
    done = run("--linker", linker, "--method", "tree_ah", "--sample", 50, "--seconds", 0.1)
    assert done.returncode == 0, done.stderr
    assert "not vectors of mentions" in done.stdout
    assert "recall@100" in done.stdout
    report = json.loads((linker / "index" / "report.json").read_text())
    assert report["rows"] == 900
    assert set(report["exact"]["recall"].values()) == {1.0}
    assert set(report["scann"]["queries_per_second"]) == {"1", "50"}

    embeddings = EmbeddingsWriter(linker / "embeddings", 900, 8, "float32", 400, "c", "e").finish()
    index = open_index(linker / "index", embeddings, "scann")
    assert index.settings.num_leaves == 60
    queries, _ = measure.perturbed_rows(embeddings, 50, 0.7, 0)
    expected = np.argsort(-(queries @ embeddings[:].T), axis=1)
    for k in (1, 10, 100):
        found = index.search(queries, k)[1]
        share = np.mean(
            [len(set(a) & set(b[:k])) / k for a, b in zip(found, expected, strict=True)]
        )
        assert report["scann"]["recall"][str(k)] == pytest.approx(share, abs=1e-6)


def test_own_queries_and_settings(linker, tmp_path):
    np.save(tmp_path / "queries.npy", np.ones((3, 8)))
    output = tmp_path / "index"
    done = run(
        *("--embeddings", linker / "embeddings", "--output", output, "--method", "ah"),
        *("--reorder", 77, "--queries", tmp_path / "queries.npy", "--seconds", 0),
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((output / "report.json").read_text())
    assert report["queries"] == f"3 of 3 in {tmp_path}/queries.npy"
    assert report["scann"]["settings"]["reorder"] == 77
    assert report["scann"]["settings"]["num_leaves"] is None


def test_exact_writes_nothing(linker, tmp_path):
    done = run("--embeddings", linker / "embeddings", "--index", "exact", "--seconds", 0)
    assert done.returncode == 0, done.stderr
    assert "recall@10" in done.stdout
    assert "scann" not in done.stdout
    assert "measuring the speed of exact, 64 at a time ...\n" in done.stderr


def test_help():
    done = run("--help")
    assert "python -m elq_jax.build_index --linker my_linker" in done.stdout
    assert "--leaves_to_search" in done.stdout


def test_refusals(linker, tmp_path, capsys):
    def of_file(name):
        return {"queries": Queries(vectors=tmp_path / name)}

    np.save(tmp_path / "wide.npy", np.ones((3, 9)))
    (tmp_path / "text.npy").write_text("hello")
    (tmp_path / "lfs.npy").write_text("version https://git-lfs.github.com/spec/v1\n")
    np.save(tmp_path / "complex.npy", np.ones((3, 8), complex))
    vectors, output = {"embeddings": linker / "embeddings"}, {"output": tmp_path / "index"}
    both = Queries(questions="q.jsonl", vectors="q.npy")
    for arguments, message in (
        ({}, "--linker, --embeddings: neither is given; give one of them"),
        (vectors, "--output: missing; --embeddings needs it"),
        ({"linker": tmp_path}, "expected a linker directory"),
        ({"embeddings": tmp_path} | output, "found no entity embeddings"),
        (vectors | output | of_file("wide.npy"), "expected (Q, 8)"),
        (vectors | output | of_file("text.npy"), "not a .npy file"),
        (vectors | output | of_file("none.npy"), "none.npy: no such file"),
        (vectors | output | of_file("lfs.npy"), "run: git lfs pull"),
        (vectors | output | of_file("complex.npy"), "found complex128"),
        (vectors | {"output": tmp_path / "text.npy"}, "exists and is not an index"),
        (vectors | output | {"queries": both}, "give one"),
        (vectors | output | {"index": "exact"}, "--output: the search --index=exact has"),
    ):
        with pytest.raises(ElqError, match=re.escape(message)):
            build_and_compare(**arguments)
        # What it costs hours to find out is asked first.
        assert "building" not in capsys.readouterr().err
    assert not (tmp_path / "index").exists()


def test_the_program_refuses_in_one_line(linker, tmp_path):
    np.save(tmp_path / "wide.npy", np.ones((3, 9)))
    done = run(
        *("--embeddings", linker / "embeddings", "--output", tmp_path / "index"),
        *("--queries", tmp_path / "wide.npy"),
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"error: {tmp_path / 'wide.npy'}: ")
    assert "Traceback" not in done.stderr


def test_questions_without_mentions_build_nothing(tmp_path):
    folder = tiny_linker_directory(tmp_path)
    (tmp_path / "questions.jsonl").write_text(
        '{"text": "who", "mentions": []}\n'
        '{"text": "who is obamaville", "mentions": [[8, 10]], "label_id": [3]}\n'
    )
    done = run("--linker", folder, "--questions", tmp_path / "questions.jsonl")
    assert done.returncode == 2
    assert "questions.jsonl: no mention to measure with; expected labelled" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (folder / "index").exists()


@pytest.mark.parametrize("noise", [0.0, 0.7])
def test_perturbed_rows_are_as_far_as_asked(linker, noise):
    embeddings = EmbeddingsWriter(linker / "embeddings", 900, 8, "float32", 400, "c", "e").finish()
    queries, _ = measure.perturbed_rows(embeddings, 40, noise, 3)
    np.testing.assert_array_equal(queries, measure.perturbed_rows(embeddings, 40, noise, 3)[0])
    table = embeddings[:]
    lengths = np.linalg.norm(table, axis=1)
    distances = np.linalg.norm(queries[:, None] - table, axis=2) / lengths
    assert np.abs(distances - noise).min(axis=1).max() < 1e-5


def test_help_does_not_wait_for_jax():
    code = "import sys, elq_jax.build_index; print({'jax', 'scipy', 'rich'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr
