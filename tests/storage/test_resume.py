"""Records of inputs: the same are taken, others are named."""

import contextlib
import hashlib
import json
import math
import os

import pytest

from elq_jax.core.errors import DataError, DiskFullError, ElqError
from elq_jax.storage import resume
from elq_jax.storage.resume import ResumeRecord


def test_values(tmp_path):
    path = tmp_path / "inputs.json"
    inputs = {"seed": 3, "sizes": (1, 2), "joint": {"rate": 0.1, "floor": -math.inf}, "on": None}
    assert not ResumeRecord(path, inputs).check()
    ResumeRecord(path, inputs).write()
    assert ResumeRecord(path, inputs).check()
    other = {"seed": 4, "sizes": [1, 2], "joint": {"rate": 0.1, "floor": -1.0}, "new": "x"}
    with pytest.raises(ElqError) as raised:
        ResumeRecord(path, other, "use the same seed").check()
    assert str(raised.value) == (
        f"{tmp_path}: holds what was made from other inputs: joint.floor (found '-inf', now -1.0), "
        "new (found None, now 'x'), seed (found 3, now 4); use the same seed"
    )


@pytest.mark.parametrize("content", ["{", "[]", "\ufeff{}"])
def test_what_is_no_record(tmp_path, content):
    path = tmp_path / "inputs.json"
    path.write_text(content)
    with pytest.raises(DataError, match=r"inputs\.json: .*give another folder"):
        ResumeRecord(path, {}, "give another folder").check()


def test_files_count_by_their_content(tmp_path, monkeypatch):
    path, data, folder = tmp_path / "inputs.json", tmp_path / "a.jsonl", tmp_path / "encoder"
    folder.mkdir()
    (folder / "weights").write_bytes(b"weights")
    data.write_bytes(b"rows")
    inputs = {"data": data, "model": {"encoder": folder}}
    ResumeRecord(path, inputs).write()
    recorded = json.loads(path.read_text())
    assert recorded["data"]["sha256"] == hashlib.sha256(b"rows").hexdigest()

    with monkeypatch.context() as patch:  # What was not touched is not read again.
        patch.delattr(resume, "digest")
        assert ResumeRecord(path, inputs).check()
    os.utime(data, (1, 1))
    moved = data.rename(tmp_path / "b.jsonl")
    assert ResumeRecord(path, inputs | {"data": moved}).check()

    moved.write_bytes(b"ROWS")
    (folder / "weights").write_bytes(b"others!")
    os.utime(folder / "weights", (1, 1))
    with pytest.raises(ElqError, match=r"data \(found content .*\), model\.encoder \(found"):
        ResumeRecord(path, inputs | {"data": moved}).check()
    with pytest.raises(ElqError, match=r"a\.jsonl: no such file"):
        ResumeRecord(path, inputs).check()


def test_a_folder_s_digest_has_names_and_contents(tmp_path):
    digests = set()
    for name, content in (("a", "x"), ("b", "x"), ("a", "y")):
        folder = tmp_path / f"{name}{content}"
        (folder / "in").mkdir(parents=True)
        (folder / "in" / name).write_text(content)
        (folder / ".lock").touch()
        digests.add(resume.digest(folder))
    assert len(digests) == 3
    (tmp_path / "link").symlink_to(tmp_path / "ax")
    assert resume.digest(tmp_path / "link") in digests


class Killed(BaseException):
    pass


def test_a_folder_is_resumed_or_begun_again(tmp_path, capsys):
    """What was left of other inputs is not mixed with these."""
    source, output = tmp_path / "source", tmp_path / "output"
    for content in ("one", "other"):
        source.write_text(content)
        with (
            contextlib.suppress(Killed),
            resume.resumable_folder(output, {"x": source}) as partial,
        ):
            assert sorted(path.name for path in partial.iterdir()) == [".lock", "inputs.json"]
            (partial / "half").touch()
            (partial / ".begun").touch()
            raise Killed
    with resume.resumable_folder(output, {"x": source}, records=["note"]) as partial:
        assert (partial / "half").exists()
        assert not (partial / ".begun").exists()
        (partial / "note").touch()
        with (
            pytest.raises(ElqError, match="another process is working in it"),
            resume.resumable_folder(output, {"x": source}),
        ):
            pass
    assert [path.name for path in output.iterdir()] == ["half"]
    told = capsys.readouterr().err
    assert told.count("begun again") == told.count("resuming with what is there") == 1
    with (
        pytest.raises(ElqError, match="output: exists; give another name"),
        resume.resumable_folder(output, {"x": source}),
    ):
        pass


def test_a_folder_of_somebody_else_is_in_the_way(tmp_path):
    """It is neither mixed with the result nor removed; what a run began before its record is."""
    partial = tmp_path / "output.partial"
    partial.mkdir()
    (partial / "thesis.tex").touch()
    with (
        pytest.raises(ElqError, match=r"output\.partial: was not left by an interrupted run"),
        resume.resumable_folder(tmp_path / "output", {}),
    ):
        pass
    assert [path.name for path in partial.iterdir()] == ["thesis.tex"]
    (partial / "thesis.tex").rename(partial / ".inputs.json.abcd")
    with resume.resumable_folder(tmp_path / "output", {}):
        pass
    assert not list((tmp_path / "output").iterdir())


@pytest.mark.parametrize("error", [ElqError, DiskFullError])
def test_what_an_error_leaves_of_a_folder(tmp_path, error):
    with pytest.raises(error), resume.resumable_folder(tmp_path / "output", {}):
        raise error("full or wrong")
    assert (tmp_path / "output.partial").exists() == (error is DiskFullError)
    assert not (tmp_path / "output").exists()


def test_the_folder_one_is_in(tmp_path, monkeypatch):
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)
    with resume.resumable_folder(".", {}) as partial:
        assert partial == tmp_path / "empty.partial"
        (partial / "file").touch()
    assert (folder / "file").exists()
