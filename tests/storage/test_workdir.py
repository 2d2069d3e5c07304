"""A workdir on object storage: fsspec's in-memory store stands for gs://."""

import uuid

import pytest

from elq_jax.core.errors import ElqError
from elq_jax.storage.remote import Workdir


@pytest.fixture
def address():
    return f"memory://bucket-{uuid.uuid4().hex}/runs/one"


def host(address, tmp_path, monkeypatch, name):
    """The workdir as a host sees it whose disk is its own."""
    monkeypatch.setenv("ELQ_JAX_SCRATCH", str(tmp_path / name))
    return Workdir(address)


def test_a_local_workdir_is_the_folder_itself(tmp_path):
    workdir = Workdir(tmp_path / "run")
    assert workdir.path == tmp_path / "run"
    assert workdir.path.is_dir()
    (workdir.path / "a").write_text("here")
    workdir.publish("a")
    workdir.fetch("a", again=True)
    assert [path.name for path in tmp_path.rglob("*")] == ["run", "a"]


def test_a_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    workdir = Workdir("~/runs/one/")
    assert workdir.path == tmp_path / "runs" / "one"
    assert workdir.address == str(workdir.path)


def test_files_reach_another_host_through_the_address(address, tmp_path, monkeypatch):
    first = host(address, tmp_path, monkeypatch, "first")
    (first.path / "joint" / "best").mkdir(parents=True)
    (first.path / "joint" / "best" / "config.json").write_text("{}")
    (first.path / "config.json").write_text("one")
    (first.path / "scratch").write_text("stays")
    first.publish("joint/best", "config.json", "missing")

    second = host(address, tmp_path, monkeypatch, "second")
    assert second.path != first.path
    second.fetch("joint/best", "config.json", "missing")
    files = {p.relative_to(second.path).as_posix() for p in second.path.rglob("*") if p.is_file()}
    assert files == {"joint/best/config.json", "config.json"}
    assert (second.path / "config.json").read_text() == "one"

    (first.path / "config.json").write_text("two")
    first.publish("config.json", again=False)  # It is there.
    second.fetch("config.json", again=True)
    assert (second.path / "config.json").read_text() == "one"
    first.publish("config.json")
    second.fetch("config.json")  # It is here.
    assert (second.path / "config.json").read_text() == "one"
    second.fetch("config.json", again=True)
    assert (second.path / "config.json").read_text() == "two"


def test_an_interrupted_copy_is_not_taken_for_a_file(address, tmp_path, monkeypatch):
    first = host(address, tmp_path, monkeypatch, "first")
    (first.path / "shard.npy").write_bytes(bytes(1000))
    first.publish("shard.npy")
    second = host(address, tmp_path, monkeypatch, "second")

    def cut(source, target):
        with open(target, "wb") as file:
            file.write(bytes(10))
        raise OSError("the connection was lost")

    with monkeypatch.context() as patch:
        patch.setattr(second._files, "get_file", cut)
        with pytest.raises(OSError, match="connection"):
            second.fetch("shard.npy")
    assert not (second.path / "shard.npy").exists()
    second.fetch("shard.npy")
    assert (second.path / "shard.npy").stat().st_size == 1000


def test_an_address_that_nothing_here_can_read(tmp_path):
    with pytest.raises(ElqError, match=r"nowhere://bucket: .*for gs:// install gcsfs"):
        Workdir("nowhere://bucket")
