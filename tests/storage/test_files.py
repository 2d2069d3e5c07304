"""Files that appear when they are whole, beside names that stand for something else."""

import errno
import multiprocessing
import os
import pathlib
import stat
import subprocess
import sys
import threading

import pytest

from elq_jax.core.errors import DiskFullError, ElqError
from elq_jax.storage import files


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_home_folder_is_found(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.user_path("~/x.jsonl") == tmp_path / "x.jsonl"
    assert files.user_path("a/~/x") == pathlib.Path("a/~/x")
    assert files.user_path("folder/") == pathlib.Path("folder")
    with pytest.raises(
        ElqError, match=r"~no\.such\.user/x: .*write the path of the home folder out"
    ):
        files.user_path("~no.such.user/x")
    for text in ("", "a\0b"):
        with pytest.raises(ElqError, match="expected the path of a file or folder"):
            files.user_path(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("-", "leave the argument out to get stdout"),
        ("new/", "ends in /; expected the name of a file, not of a folder"),
        ("x.jsonl.GZ", "not compressed; give a name that does not end in .gz"),
        (".", "is a folder; give the name of a file"),
    ],
)
def test_names_that_no_file_can_be_written_to(text, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ElqError, match=message):
        files.output_file(text)
    assert names(tmp_path) == []
    assert files.output_file("x.jsonl.gz", may_be_gzip=True) == pathlib.Path("x.jsonl.gz")


def test_the_target_of_a_link_is_replaced_and_not_the_link(tmp_path):
    (tmp_path / "real").mkdir()
    real, link = tmp_path / "real" / "a", tmp_path / "link"
    link.symlink_to("real/a")
    for text in ("first", "second"):
        with files.atomic_write(link, "w") as file:
            file.write(text)
        assert link.is_symlink()
        assert real.read_text() == text
        assert names(real.parent) == ["a"]


@pytest.mark.parametrize("through_a_link", [False, True])
def test_a_fifo_is_written_to_and_stays(tmp_path, through_a_link):
    path = tmp_path / "fifo"
    os.mkfifo(path)
    given = path
    if through_a_link:
        given = tmp_path / "link"
        given.symlink_to(path)
    read = []
    reader = threading.Thread(target=lambda: read.append(path.read_bytes()))
    reader.start()
    with files.atomic_write(given) as file:
        file.write(b"a line\n")
    reader.join(10)
    assert read == [b"a line\n"]
    assert stat.S_ISFIFO(path.stat().st_mode)
    assert names(tmp_path) == ["fifo", *(["link"] if through_a_link else [])]


def test_an_open_descriptor_is_added_to(tmp_path):
    """What is behind /dev/stdout may be a file, which others have written to."""
    log = tmp_path / "log"
    log.write_text("before\n")
    code = (
        "from elq_jax.storage.files import atomic_write\n"
        "with atomic_write('/dev/fd/1', 'w') as file: file.write('here\\n')\n"
    )
    with open(log, "ab") as file:
        subprocess.run([sys.executable, "-c", code], stdout=file, check=True)
    assert log.read_text() == "before\nhere\n"
    assert names(tmp_path) == ["log"]


def test_folders_and_sockets_are_refused(tmp_path, monkeypatch):
    import socket

    with pytest.raises(ElqError, match="is a folder; give the name of a file"):
        files.is_stream(tmp_path)
    monkeypatch.chdir(tmp_path)  # A socket's path is short.
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
        with (
            pytest.raises(ElqError, match="is neither a file nor a pipe; give the name of a file"),
            files.atomic_write(tmp_path / "socket"),
        ):
            pass
    assert stat.S_ISSOCK((tmp_path / "socket").stat().st_mode)
    assert not files.is_stream(tmp_path / "absent")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("RESOURCE_EXHAUSTED: cannot append; No space left on device"),
    ],
)
def test_a_full_disk_leaves_what_was_there(tmp_path, error):
    path = tmp_path / "a"
    path.write_text("older")
    message = f"{path}: not written, the disk is full; free some space and run again"

    def fail(file):
        file.write(b"begun")
        raise error

    with pytest.raises(DiskFullError, match=message), files.atomic_write(path) as file:
        fail(file)
    assert names(tmp_path) == ["a"]
    assert path.read_text() == "older"


def test_errors_that_are_not_of_a_full_disk(tmp_path):
    for error in (OSError(errno.EACCES, "no"), RuntimeError("other"), ElqError("No space left")):
        with pytest.raises(type(error)) as raised, files.full_disk(tmp_path):
            raise error
        assert raised.value is error


def test_a_folder_appears_when_it_is_whole(tmp_path):
    real, link = tmp_path / "real", tmp_path / "link"
    real.mkdir()
    (real / "mark").write_text("old")
    link.symlink_to(real)

    def has_mark(folder):
        return (folder / "mark").exists()

    with files.atomic_folder(link, "marked", has_mark) as folder:
        (folder / "mark").write_text("new")
        assert (real / "mark").read_text() == "old"
    assert link.is_symlink()
    assert (real / "mark").read_text() == "new"
    assert names(tmp_path) == ["link", "real"]

    def interrupt(folder):
        (folder / "mark").write_text("newer")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), files.atomic_folder(link, "marked", has_mark) as folder:
        interrupt(folder)
    assert (real / "mark").read_text() == "new"
    (tmp_path / "file").write_text("x")
    for place in (real, tmp_path / "file"):
        with (
            pytest.raises(ElqError, match="exists and is not an index; give another name"),
            files.atomic_folder(place, "an index"),
        ):
            pass
    assert names(tmp_path) == ["file", "link", "real"]
    (tmp_path / "empty").mkdir()
    with files.atomic_folder(tmp_path / "empty", "an index") as folder:
        (folder / "a").touch()
    assert names(tmp_path / "empty") == ["a"]


def test_links_are_followed_where_files_are_linked_or_copied(tmp_path, monkeypatch):
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "inner").mkdir(parents=True)
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "weights").write_text("weights")
    (source / "weights").symlink_to("../store/weights")
    (source / "folder").symlink_to("../store")
    (source / "inner" / "plain").write_text("plain")
    found = ["folder", "folder/weights", "inner", "inner/plain", "weights"]
    for place in (target, tmp_path / "elsewhere" / "target"):
        place.parent.mkdir(exist_ok=True)
        files.link_or_copy(source, place)
        assert [path.relative_to(place).as_posix() for path in sorted(place.rglob("*"))] == found
        assert not any(path.is_symlink() for path in place.rglob("*"))
        assert (place / "weights").read_text() == "weights"

        def refused(*_):
            raise OSError(errno.EXDEV, "on another disk")

        monkeypatch.setattr(os, "link", refused)
    assert (target / "weights").stat().st_nlink == 3  # store, and linked twice from there
    (source / "broken").symlink_to("nowhere")
    with pytest.raises(ElqError, match="broken: a symbolic link to nothing"):
        files.link_or_copy(source, tmp_path / "third")


def _hold(folder, held, end):
    with files.folder_lock(folder):
        held.set()
        end.wait(60)


def test_a_folder_is_held_by_one_process(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    held, end = spawn.Event(), spawn.Event()
    process = spawn.Process(target=_hold, args=(tmp_path, held, end))
    process.start()
    assert held.wait(60)
    with (
        pytest.raises(ElqError, match="another process is working in it; wait for its end"),
        files.folder_lock(tmp_path),
    ):
        pass
    process.kill()
    process.join()
    with files.folder_lock(tmp_path):
        pass
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("old")
    (tmp_path / "link").symlink_to("made")
    files.make_folder(tmp_path / "link/below")
    assert (tmp_path / "made/below").is_dir()
    assert (tmp_path / "link").is_symlink()
    for folder in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(ElqError, match=r"file is not a folder; give the name of a folder"):
            files.make_folder(folder)
    assert (tmp_path / "file").read_text() == "old"
