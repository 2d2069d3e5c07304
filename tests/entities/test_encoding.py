"""Encoding a catalogue: the original's vectors; interrupted, on several devices, refused."""

import errno
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest
import reference
from conftest import OWN_FIXTURES, xla_flags
from reference import arrays
from tiny import tiny_model, write_tiny_bert

from elq_jax.core.errors import DiskFullError, ElqError
from elq_jax.entities import build
from elq_jax.entities.build import build_catalogue, open_or_build_catalogue
from elq_jax.entities.catalogue import Catalogue
from elq_jax.entities.encode import CatalogueEncoder, encode_catalogue, encode_entities
from elq_jax.entities.settings import EncodingSettings
from elq_jax.storage.files import folder_lock

ENTITIES = len(arrays("kb")["encoded_first64"])


@pytest.fixture(scope="module")
def catalogue(fixtures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("catalogue")
    lines = (fixtures / "entity.jsonl").read_text().splitlines(keepends=True)
    (folder / "entity.jsonl").write_text("".join(lines[:ENTITIES]))
    build_catalogue(folder / "entity.jsonl", folder / "catalogue.arrow")
    return Catalogue.open(folder / "catalogue.arrow")


def make_encoder(num_devices=1, **changes):
    return CatalogueEncoder(
        reference.model(**changes),
        batch_size=16,
        devices=jax.local_devices()[:num_devices],
    )


@pytest.fixture(scope="module")
def encoder():
    return make_encoder()


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_vectors_are_the_originals(encoder, catalogue, tmp_path):
    embeddings = encode_catalogue(encoder, catalogue, tmp_path / "embeddings", shard_rows=20)
    np.testing.assert_allclose(embeddings[:], arrays("kb")["encoded_first64"], rtol=0, atol=2e-5)


def test_interrupted_encoding_goes_on_to_the_same_files(encoder, catalogue, tmp_path):
    encode_catalogue(encoder, catalogue, tmp_path / "whole", shard_rows=20)
    counts = []

    def interrupt(count):
        counts.append(count)
        if sum(counts) > 40:  # In the third shard.
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode_catalogue(encoder, catalogue, tmp_path / "broken", shard_rows=20, progress=interrupt)
    written = files(tmp_path / "broken")
    done = []
    encode_catalogue(encoder, catalogue, tmp_path / "broken", shard_rows=20, progress=done.append)
    assert done[0] == 40  # Finished shards are not done again.
    assert sorted(done[1:]) == [4, 4, 16]  # Batches of the others.
    assert written.items() <= files(tmp_path / "broken").items()
    assert files(tmp_path / "broken") == files(tmp_path / "whole")


def test_three_devices_give_the_same_vectors(encoder, catalogue):
    rows = range(30)
    texts = catalogue.titles(rows), catalogue.texts(rows)
    found = make_encoder(num_devices=3).encode(*texts)
    np.testing.assert_allclose(found, encoder.encode(*texts), rtol=0, atol=2e-5)


def test_vectors_of_another_encoder_are_not_continued(encoder, catalogue, tmp_path):
    encode_catalogue(encoder, catalogue, tmp_path / "embeddings", shard_rows=20)
    with pytest.raises(ElqError, match="encoder_fingerprint"):
        encode_catalogue(
            make_encoder(max_entity_tokens=20), catalogue, tmp_path / "embeddings", shard_rows=20
        )


@pytest.mark.parametrize(
    ("change", "matters"),
    [
        ({"normalize_entities": True}, True),
        ({"entity_pooling": "mean"}, True),
        ({"max_entity_tokens": 20}, True),
        ({"max_question_tokens": 20}, False),
        ({"mention_head": "mlp"}, False),
        ({"normalize_mentions": True, "score_scale": 2.0}, False),
    ],
)
def test_the_fingerprint_is_of_what_vectors_depend_on(change, matters):
    before, after = reference.model(), reference.model(**change)
    assert (before.entity_fingerprint != after.entity_fingerprint) == matters
    changed = before.replace(config=after.config)
    assert changed.entity_fingerprint == after.entity_fingerprint


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "elq_jax.encode_entities", *map(str, arguments)],
        env=os.environ | {"ELQ_JAX_CACHE": "", "XLA_FLAGS": xla_flags(1)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*arguments):
    process = start(*arguments)
    output, errors = process.communicate(timeout=300)
    assert output == ""
    return process.returncode, errors


def test_program_killed_and_given_again(tmp_path):
    """The file has a line that is none, a title twice, and an entity without text."""
    (tmp_path / "bert").mkdir()
    write_tiny_bert(tmp_path / "bert", layers=1)
    lines = (OWN_FIXTURES / "entity.jsonl").read_text().splitlines()[:40]
    lines[2] = '{"title": "x"'
    lines += [lines[0], json.dumps({"title": "Dune", "text": ""})]
    source = tmp_path / "entities.jsonl"
    source.write_text("\n".join(lines))
    arguments = ("--catalogue", source, "--encoder", tmp_path / "bert", "--max_tokens", 8)
    arguments += ("--shard-rows", 2, "--batch-size", 2)
    whole, broken = tmp_path / "whole", tmp_path / "broken"

    status, errors = run(*arguments, "--output", whole)
    assert status == 2
    assert f"error: {source}:3: invalid JSON" in errors
    assert not whole.exists() or not files(whole)

    arguments += ("--on-error", "skip")
    status, errors = run(*arguments, "--output", whole)
    assert status == 0, errors
    assert f"left out: {source}:3: invalid JSON" in errors
    expected = "41 entities, 1 with the title of an earlier one, 1 without text, 1 left out"
    assert expected in errors
    assert "41 entities, width 64, float32" in errors

    process = start(*arguments, "--output", broken)
    while not list(broken.glob("embeddings/shard-*")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    # What is begun has a name that starts with a dot.
    finished = {path: path.stat().st_mtime_ns for path in broken.glob("embeddings/shard-*")}
    assert 0 < len(finished) < 21
    status, errors = run(*arguments, "--output", broken)
    assert status == 0, errors
    for path, written in finished.items():
        assert path.stat().st_mtime_ns == written
    shards = {path.name: path.read_bytes() for path in whole.glob("embeddings/shard-*")}
    assert len(shards) == 21
    assert {path.name: path.read_bytes() for path in broken.glob("embeddings/shard-*")} == shards
    assert (broken / "catalogue.arrow").read_bytes() == (whole / "catalogue.arrow").read_bytes()

    status, errors = run(*arguments, "--output", whole, "--normalize")
    assert status == 2
    assert "holds what was made from other inputs: encoder_fingerprint (found" in errors


def test_a_catalogue_is_built_again_from_another_file(tmp_path):
    """Also from one that is older than what was built before."""
    for name in ("older", "newer"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"title": name, "text": ""}) + "\n")
    os.utime(tmp_path / "older.jsonl", (1, 1))
    output = tmp_path / "out" / "catalogue.arrow"
    for name in ("newer", "older", "newer"):
        catalogue = open_or_build_catalogue(tmp_path / f"{name}.jsonl", output)
        assert catalogue.titles([0]) == [name]
    built = output.stat().st_mtime_ns
    open_or_build_catalogue(tmp_path / "newer.jsonl", output)
    assert output.stat().st_mtime_ns == built


def test_a_catalogue_that_has_embeddings_is_not_replaced(encoder, tmp_path):
    """By another one: the folder stays as it was, and still opens. The same one may come again."""
    output = tmp_path / "out"
    lines = (OWN_FIXTURES / "entity.jsonl").read_text().splitlines(keepends=True)
    for name, count in (("first", 20), ("other", 30)):
        (tmp_path / f"{name}.jsonl").write_text("".join(lines[:count]))
    catalogue = open_or_build_catalogue(tmp_path / "first.jsonl", output / "catalogue.arrow")
    encode_catalogue(encoder, catalogue, output / "embeddings", shard_rows=20)
    build_catalogue(tmp_path / "other.jsonl", tmp_path / "other.arrow")
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    for source in ("other.jsonl", "other.arrow"):
        with pytest.raises(ElqError, match=f"embeddings of another catalogue than .*{source}"):
            open_or_build_catalogue(tmp_path / source, output / "catalogue.arrow")
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before
    (tmp_path / "again.jsonl").write_text((tmp_path / "first.jsonl").read_text())
    again = open_or_build_catalogue(tmp_path / "again.jsonl", output / "catalogue.arrow")
    assert again.fingerprint == catalogue.fingerprint


class SmallDisk(io.FileIO):
    """A file on a disk that takes `room` more bytes."""

    room = 0

    def write(self, data):
        written = super().write(memoryview(data)[: SmallDisk.room])
        SmallDisk.room -= written
        if written < len(data):
            raise OSError(errno.ENOSPC, "No space left on device")
        return written


@pytest.mark.parametrize("part", [0, 0.3, 0.9])  # The last is in a shard.
def test_full_disk(fixtures, tmp_path, monkeypatch, part):
    twenty = EncodingSettings(shard_rows=20)
    source, output = tmp_path / "entities.jsonl", tmp_path / "out"
    lines = (fixtures / "entity.jsonl").read_text().splitlines(keepends=True)
    source.write_text("".join(lines[:ENTITIES]))
    encode_entities(tiny_model(), source, tmp_path / "whole", twenty)
    size = sum(path.stat().st_size for path in (tmp_path / "whole").rglob("*") if path.is_file())
    monkeypatch.setattr(SmallDisk, "room", int(part * size))
    with monkeypatch.context() as patch:
        patch.setattr(
            "elq_jax.storage.files.os.fdopen",
            lambda descriptor, mode, **_: io.BufferedWriter(SmallDisk(descriptor, "wb")),
        )
        with pytest.raises(DiskFullError, match="not written, the disk is full; free some space"):
            encode_entities(tiny_model(), source, output, twenty)
    assert not [path for path in output.rglob(".*")]
    encode_entities(tiny_model(), source, output, twenty)
    assert files(output / "embeddings") == files(tmp_path / "whole" / "embeddings")


def test_a_folder_that_another_process_is_writing(fixtures, tmp_path):
    with (
        folder_lock(tmp_path),
        pytest.raises(ElqError, match="another process is working in it; wait for its end"),
    ):
        encode_entities(tiny_model(), fixtures / "entity.jsonl", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_two_that_build_one_catalogue_at_once(fixtures, tmp_path, monkeypatch):
    both, build_one, results = threading.Barrier(2), build._build, []

    def slow(*arguments):
        report = build_one(*arguments)
        both.wait(60)
        return report

    def start_one():
        path = tmp_path / "out" / "catalogue.arrow"
        results.append(len(open_or_build_catalogue(fixtures / "entity.jsonl", path)))

    monkeypatch.setattr(build, "_build", slow)
    threads = [threading.Thread(target=start_one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    count = len((fixtures / "entity.jsonl").read_text().splitlines())
    assert results == [count, count]
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["catalogue.arrow", "catalogue.source.json"]
