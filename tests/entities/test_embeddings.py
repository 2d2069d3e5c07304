"""Embeddings on disk, against the arrays that were written."""

import hashlib
import json
import os

import ml_dtypes
import numpy as np
import pytest

from elq_jax.core.errors import ElqError
from elq_jax.entities.embeddings import Embeddings, EmbeddingsWriter


def table(rows=53, width=12, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)


def writer(folder, values, dtype="float32", shard_rows=10, catalogue="c", encoder="e"):
    return EmbeddingsWriter(folder, *values.shape, dtype, shard_rows, catalogue, encoder)


def fill(target, values, shards=None):
    for shard in target.missing_shards() if shards is None else shards:
        target.write_shard(shard, values[slice(*target.shard_range(shard))])


def rounded(values, dtype):
    """What the dtype can hold, computed row by row."""
    if dtype == "float32":
        return values
    if dtype == "bfloat16":
        return values.astype(ml_dtypes.bfloat16).astype(np.float32)
    out = []
    for row in values:
        scale = np.float32(max(abs(row)) / np.float32(127)) or np.float32(1)
        out.append([np.float32(round(float(x / scale))) * scale for x in row])
    return np.array(out, np.float32)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_round_trip(tmp_path, dtype):
    values = table()
    values[7] = 0
    target = writer(tmp_path, values, dtype)
    assert target.num_shards == 6
    fill(target, values)
    opened = target.finish()
    expected = rounded(values, dtype)
    assert opened.shape == (53, 12)
    assert opened.dtype == dtype
    ids = np.array([52, 0, 7, 10, 9, 0, 31])
    np.testing.assert_array_equal(opened.rows(ids), expected[ids])
    assert opened.rows(ids).dtype == np.float32
    np.testing.assert_array_equal(opened[3:25:4], expected[3:25:4])
    np.testing.assert_array_equal(opened[11], expected[11])
    assert opened.rows(np.array([], int)).shape == (0, 12)
    seen = 0
    for start, block in opened.blocks(4):
        assert start == seen
        assert len(block) <= 4
        np.testing.assert_array_equal(block, expected[start : start + len(block)])
        seen += len(block)
    assert seen == 53
    assert np.abs(opened[:] - values).max() <= {"float32": 0, "bfloat16": 0.02, "int8": 0.02}[dtype]


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_killed_and_continued_equals_unbroken(tmp_path, dtype):
    values = table()
    fill(writer(tmp_path / "whole", values, dtype), values)
    fill(writer(tmp_path / "parts", values, dtype), values, [4, 1])
    with pytest.raises(ElqError, match="4 of 6 shards are missing"):
        Embeddings.open(tmp_path / "parts")
    again = writer(tmp_path / "parts", values, dtype)
    assert again.missing_shards() == [0, 2, 3, 5]
    fill(again, values)
    again.finish()
    whole, parts = (sorted(os.listdir(tmp_path / name)) for name in ("whole", "parts"))
    assert whole == parts
    for name in whole:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()


def test_two_writers_share_a_folder(tmp_path):
    values = table()
    first, second = writer(tmp_path, values), writer(tmp_path, values)
    fill(first, values, [0, 2, 4])
    fill(second, values, [1, 3, 5])
    np.testing.assert_array_equal(first.finish()[:], values)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"catalogue": "other"}, r"catalogue_fingerprint \(found 'c', now 'other'\)"),
        ({"encoder": "other"}, "encoder_fingerprint"),
        ({"dtype": "int8"}, "dtype"),
        ({"shard_rows": 11}, "shard_rows"),
        ({"values": table(54)}, r"rows \(found 53, now 54\)"),
    ],
)
def test_continuing_with_other_settings_is_refused(tmp_path, change, named):
    fill(writer(tmp_path, table()), table(), [0])
    with pytest.raises(ElqError, match=named):
        writer(tmp_path, **{"values": table(), **change})


def test_open_refuses_other_catalogue_or_encoder(tmp_path):
    target = writer(tmp_path, table())
    fill(target, table())
    Embeddings.open(tmp_path, "c", "e")
    with pytest.raises(ElqError, match="another catalogue"):
        Embeddings.open(tmp_path, "d", "e")
    with pytest.raises(ElqError, match="another encoder"):
        Embeddings.open(tmp_path, "c", "f")
    with pytest.raises(ElqError, match="found no entity embeddings"):
        Embeddings.open(tmp_path / "absent")


def test_fingerprint_tells_tables_apart(tmp_path):
    seen = set()
    for number, change in enumerate(({}, {"catalogue": "x"}, {"encoder": "x"}, {"dtype": "int8"})):
        target = writer(tmp_path / str(number), table(), **change)
        fill(target, table())
        seen.add(target.finish().fingerprint)
        assert target.finish().fingerprint == target.finish().fingerprint
    assert len(seen) == 4


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_bad_row_is_named(tmp_path, bad, dtype):
    values = table()
    values[23, 3] = bad
    target = writer(tmp_path, values, dtype)
    with pytest.raises(ElqError, match="row 23 holds NaN or infinity"):
        fill(target, values)
    assert target.missing_shards() == [2, 3, 4, 5]


def test_wrong_arguments(tmp_path):
    target = writer(tmp_path / "x", table())
    with pytest.raises(ElqError, match=r"found shape \(9, 12\), expected \(10, 12\)"):
        target.write_shard(0, table(9))
    with pytest.raises(ElqError, match="shard 6"):
        target.shard_range(6)
    with pytest.raises(ElqError, match="float64"):
        EmbeddingsWriter(tmp_path / "y", 3, 4, "float64")
    with pytest.raises(ElqError, match="rows = 0"):
        EmbeddingsWriter(tmp_path / "y", 0, 4)
    fill(target, table())
    opened = target.finish()
    for ids in ([53], [-1]):
        with pytest.raises(ElqError, match="0 <= row < 53"):
            opened.rows(np.array(ids))
    with pytest.raises(ElqError, match="expected integers"):
        opened.rows(np.array([0.5]))


def test_damage_is_noticed(tmp_path):
    target = writer(tmp_path, table())
    fill(target, table())
    shard = tmp_path / "shard-00002-of-00006.npy"
    whole = shard.read_bytes()
    for broken in (whole[:200], b"", b"hello"):
        shard.write_bytes(broken)
        with pytest.raises(ElqError, match=r"shard-00002-of-00006\.npy: missing or damaged"):
            Embeddings.open(tmp_path)
    np.save(shard, table(3))
    with pytest.raises(ElqError, match=r"expected float32 \(10, 12\)"):
        Embeddings.open(tmp_path)
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ElqError, match=r"shard-00002-of-00006\.npy: damaged: its SHA-256 is"):
        Embeddings.open(tmp_path)
    shard.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(ElqError, match=r"shard-00002-of-00006\.npy: a git-lfs pointer"):
        Embeddings.open(tmp_path)
    shard.write_bytes(whole)
    digests = tmp_path / "digest-00002-of-00006.sha256"
    kept = digests.read_text()
    for content, message in (
        ("", "holds no checksum"),
        ("null", "found 'null', expected a SHA-256"),
        (kept.replace("00002", "00001"), "checksums of .*00001"),
    ):
        digests.write_text(content)
        with pytest.raises(ElqError, match=rf"digest-00002-of-00006\.sha256.*{message}"):
            Embeddings.open(tmp_path)
    digests.unlink()
    with pytest.raises(ElqError, match=rf"{digests.name}: missing: the checksum of {shard.name}"):
        Embeddings.open(tmp_path)
    path = tmp_path / "embeddings.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 1}))
    assert Embeddings.open(tmp_path).check_digests() == [shard.name]  # as before there were any
    (tmp_path / "embeddings.json").write_text("{}")
    with pytest.raises(ElqError, match="found format_version None, expected 2"):
        Embeddings.open(tmp_path)
    (tmp_path / "embeddings.json").unlink()
    with pytest.raises(ElqError, match=r"no embeddings\.json"):
        writer(tmp_path, table())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": 10**13}, r"<= 2147483647 - at `\$.rows`"),
        ({"rows": 2**31 - 1, "shard_rows": 1}, "unfinished, 2147483641 of 2147483647 shards"),
        ({"rows": True}, r"Expected `int`, got `bool` - at `\$.rows`"),
        ({"rows": 53.0}, r"Expected `int`, got `float`"),
        ({"width": 0}, r"`int` >= 1 - at `\$.width`"),
        ({"width": 10**6}, r"at `\$.width`"),
        ({"dtype": "float16"}, r"Invalid enum value 'float16' - at `\$.dtype`"),
        ({"dtype": None}, r"at `\$.dtype`"),
        ({"shard_rows": 0}, r"at `\$.shard_rows`"),
        ({"catalogue_fingerprint": 3}, r"at `\$.catalogue_fingerprint`"),
        ({"format_version": 3}, "found format_version 3, expected 2"),
    ],
)
def test_a_description_that_cannot_be(tmp_path, change, message):
    """Refused at once, before anything of such a size is allocated or looped over."""
    target = writer(tmp_path, table())
    fill(target, table())
    path = tmp_path / "embeddings.json"
    description = json.loads(path.read_text())
    path.write_text(json.dumps(description | change))
    with pytest.raises(ElqError, match=message):
        Embeddings.open(tmp_path)
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(description).encode())  # as Notepad writes it
    assert Embeddings.open(tmp_path).shape == (53, 12)


def test_a_folder_that_an_older_version_began(tmp_path):
    """It is resumed, with checksums for the shards that were missing."""
    target = writer(tmp_path, table())
    fill(target, table())
    path = tmp_path / "embeddings.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 1}))
    for name in ("digest-00000-of-00006.sha256", "digest-00002-of-00006.sha256"):
        (tmp_path / name).unlink()
    (tmp_path / "shard-00002-of-00006.npy").unlink()
    resumed = writer(tmp_path, table())
    assert resumed.missing_shards() == [2]
    resumed.write_shard(2, table()[slice(*resumed.shard_range(2))])
    assert resumed.finish().check_digests() == ["shard-00000-of-00006.npy"]


def test_checksums_are_those_of_sha256sum(tmp_path):
    target = writer(tmp_path, table(), "int8")
    fill(target, table())
    for path in sorted(tmp_path.glob("digest-*")):
        for line in path.read_text().splitlines():
            digest, name = line.split("  ")
            assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == digest
    assert target.finish().check_digests() == []


def test_full_disk_leaves_no_half_shard(tmp_path, monkeypatch):
    target = writer(tmp_path, table())

    room = 2  # files: a checksum, and the shard that does not fit

    def synchronise(_):
        nonlocal room
        room -= 1
        if not room:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", synchronise)
    with pytest.raises(ElqError, match="the disk is full"):
        fill(target, table())
    assert sorted(os.listdir(tmp_path)) == ["digest-00000-of-00006.sha256", "embeddings.json"]
    monkeypatch.undo()
    fill(target, table())
    np.testing.assert_array_equal(target.finish()[:], table())


def test_one_entity(tmp_path):
    target = writer(tmp_path, table(1), shard_rows=1000)
    fill(target, table(1))
    np.testing.assert_array_equal(target.finish()[:], table(1))
