"""Writes files and folders that appear under their names only when whole; paths; locks."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import pathlib
import re
import shutil
import stat
import sys
import tempfile
import types
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any

import numpy as np

from elq_jax.core.errors import DataError, DiskFullError, ElqError, LockedError

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
# Words with which array_record, ScaNN, TensorStore and others report a full disk.
_NO_SPACE_TEXT = re.compile("No space left on device|Disk quota exceeded|RESOURCE_EXHAUSTED")
_OPEN_DESCRIPTORS = re.compile(r"/proc/\d+(/task/\d+)?/fd|/dev/fd")


def user_path(text: str | os.PathLike[str]) -> pathlib.Path:
    """Returns the path of a typed text, in which `~` and `~name` stand for home folders.

    Args:
      text: typed path. A shell does not expand the `~` of `--output=~/x`.

    Raises:
      ElqError: the text is empty, holds a NUL character, or names an unknown home.
    """
    path = os.fspath(text)
    if not path or "\0" in path:
        raise ElqError(f"{path!r}: expected the path of a file or folder; give one")
    try:
        return pathlib.Path(path).expanduser()
    except RuntimeError as error:
        message = f"{path}: no such home folder; write the path of the home folder out"
        raise ElqError(message) from error


def user_address(text: str | os.PathLike[str]) -> pathlib.Path | str:
    """Returns a path as `user_path` does, or an address such as gs://bucket/a unchanged."""
    return os.fspath(text) if "://" in os.fspath(text) else user_path(text)


def is_gzip_name(path: str | os.PathLike[str]) -> bool:
    """Returns whether the name of a file ends in .gz, in upper or lower case."""
    return os.fspath(path).lower().endswith(".gz")


def is_stream(path: str | os.PathLike[str]) -> bool:
    """Returns whether `path` is a stream: a pipe, a device, or an open descriptor.

    Such a path (a FIFO, /dev/null, /dev/stdout, /dev/fd/3) is written to; nothing may ever be
    renamed onto it. Symbolic links are followed.

    Raises:
      ElqError: `path` is a folder, a socket or a disk, which are neither files nor streams, or a
        link to itself.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ElqError(f"{os.fspath(path)}: a symbolic link that leads to itself") from error
        return False  # It does not exist, or its folder cannot be read, which writing reports.
    if stat.S_ISREG(mode):
        return _is_descriptor(path)
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        return True
    kind = "a folder" if stat.S_ISDIR(mode) else "neither a file nor a pipe"
    raise ElqError(f"{os.fspath(path)}: is {kind}; give the name of a file")


def _is_descriptor(path: str | os.PathLike[str]) -> bool:
    """Returns whether a path leads to an open descriptor of a process, as /dev/stdout does."""
    name = os.path.abspath(path)
    for _ in range(40):  # as many links as Linux follows
        folder = os.path.realpath(os.path.dirname(name))
        if _OPEN_DESCRIPTORS.fullmatch(folder):
            return True
        if not os.path.islink(name):
            return False
        name = os.path.join(folder, os.readlink(name))
    return False


def output_file(path: str | os.PathLike[str], may_be_gzip: bool = False) -> pathlib.Path:
    """Returns the path of a file to be written, as `user_path` does.

    Args:
      path: typed path.
      may_be_gzip: whether a name that ends in .gz is written as gzip; refused otherwise.

    Raises:
      ElqError: the path is "-", ends in a slash, ends in .gz and would not be gzip, or is a folder,
        a socket or a disk.
    """
    text = os.fspath(path)
    if text == "-":
        raise ElqError("-: expected the name of a file; leave the argument out to get stdout")
    if text.endswith(os.sep):
        raise ElqError(f"{text}: ends in {os.sep}; expected the name of a file, not of a folder")
    if is_gzip_name(text) and not may_be_gzip:
        raise ElqError(f"{text}: this file is not compressed; give a name that does not end in .gz")
    path = user_path(text)
    is_stream(path)
    return path


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "wb") -> Iterator[IO[Any]]:
    """Opens a temporary file beside `path` and renames it to `path` when the block succeeds.

    If the block raises (full disk, interrupt), the temporary file is removed and an older file
    at `path` stays as it was. Symbolic links are followed, so the file that they lead to is
    replaced and not the link. A path that is not a regular file (a FIFO, a device, /dev/stdout) is
    never replaced: it is opened and written to.

    Args:
      path: final path of the file.
      mode: mode of the file, "wb" or "w" (UTF-8).

    Raises:
      DiskFullError: the disk is full.
      ElqError: `path` is a folder, a socket or a disk.
    """
    path = pathlib.Path(path)
    encoding = None if "b" in mode else "utf-8"
    with full_disk(path):
        if is_stream(path):
            with os.fdopen(open_stream(path), mode, encoding=encoding) as file:
                yield file
            return
        final = pathlib.Path(os.path.realpath(path))
        make_folder(final.parent)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{final.name}.", dir=final.parent)
        try:
            with os.fdopen(descriptor, mode, encoding=encoding) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, final)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Waits until the names in a folder are on disk, so that a power cut does not lose them."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_stream(path: pathlib.Path) -> int:
    """Opens a stream for appending, so that earlier lines of `>> log` stay."""
    return os.open(path, os.O_WRONLY | os.O_APPEND)


def make_folder(folder: str | os.PathLike[str]) -> None:
    """Makes a folder and those above it, unless they are there; a symbolic link is followed.

    Raises:
      ElqError: it, or something above it, is there and is not a folder.
    """
    final = pathlib.Path(os.path.realpath(folder))
    try:
        final.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        obstacle = next(path for path in (final, *final.parents) if os.path.lexists(path))
        raise ElqError(
            f"{os.fspath(folder)}: {obstacle} is not a folder; give the name of a folder, which is "
            "made if it does not exist"
        ) from error


def make_results_folder(folder: str | os.PathLike[str], names: Iterable[str]) -> None:
    """Makes a folder and checks, before work begins, that files can be written there.

    Args:
      folder: path of a folder, made if it is not there.
      names: names of the files, which may exist as files.

    Raises:
      ElqError: the folder is a file or cannot be written to, or one of these names is that of a
        folder, a pipe, a device, or a link to one of those.
    """
    make_folder(folder)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ElqError(f"{os.fspath(folder)}: cannot be written to; give another folder")
    for name in names:
        path = os.path.join(folder, name)
        if is_stream(path):
            raise ElqError(f"{path}: a pipe or device, expected a file or nothing; remove it")


@contextlib.contextmanager
def full_disk(
    path: str | os.PathLike[str], advice: str = "free some space and run again"
) -> Iterator[None]:
    """Raises a DiskFullError that names `path` if the block fails for want of room.

    Args:
      path: path that the block writes.
      advice: text for the error message on what to do.

    Raises:
      DiskFullError: the disk, or the user's share of it, is full.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, ElqError) or not _says_no_space(error):
            raise
        message = f"{os.fspath(path)}: not written, the disk is full; {advice}"
        raise DiskFullError(message) from error


def _says_no_space(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _NO_SPACE
    if type(error).__name__ == "JaxRuntimeError":  # whose RESOURCE_EXHAUSTED is a device's memory
        return False
    return bool(_NO_SPACE_TEXT.search(str(error)))


def map_array(
    path: str | os.PathLike[str], dtype: Any, shape: tuple[int, ...], advice: str
) -> np.ndarray:
    """Maps an array of a .npy file into memory, which must have this dtype and shape.

    Args:
      path: path of the file.
      dtype: dtype of the array.
      shape: shape of the array.
      advice: text at the end of errors, what to do.

    Raises:
      ElqError: the file is missing, damaged, or holds another array.
    """
    try:
        check_not_a_pointer(path)
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        if isinstance(error, ElqError):
            raise
        raise ElqError(f"{os.fspath(path)}: missing or damaged ({error}); {advice}") from error
    if array.dtype != dtype or array.shape != shape:
        raise ElqError(
            f"{os.fspath(path)}: found {array.dtype} {array.shape}, expected {np.dtype(dtype)} "
            f"{shape}; {advice}"
        )
    return np.asarray(array)  # the same memory without np.memmap's slow indexing


def check_not_a_pointer(path: str | os.PathLike[str]) -> None:
    """Raises a DataError if a file is a git-lfs pointer to one that was not fetched."""
    with open(path, "rb") as file:
        if file.read(23) == b"version https://git-lfs":
            raise DataError("a git-lfs pointer, not the file itself; run: git lfs pull", path)


@contextlib.contextmanager
def atomic_folder(
    folder: str | os.PathLike[str],
    holds: str,
    is_replaceable: Callable[[pathlib.Path], bool] = lambda folder: False,
) -> Iterator[pathlib.Path]:
    """Yields a temporary folder that takes the place of `folder` when the block succeeds.

    Args:
      folder: path that is absent, an empty folder, or one that is replaced. A symbolic link is
        followed.
      holds: words for what the folder holds, for the error message: "a linker directory".
      is_replaceable: function that returns whether a folder that is not empty may be replaced.

    Raises:
      DiskFullError: the disk is full.
      ElqError: `folder` is a file, or a folder that holds something else.
    """
    final = pathlib.Path(os.path.realpath(folder))
    check_replaceable(final, holds, is_replaceable)
    with full_disk(folder):
        make_folder(final.parent)
        temporary = pathlib.Path(tempfile.mkdtemp(prefix=f".{final.name}.", dir=final.parent))
        try:
            temporary.chmod(0o777 & ~_umask())
            yield temporary
            take_place(temporary, final)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def check_replaceable(
    folder: pathlib.Path, holds: str, is_replaceable: Callable[[pathlib.Path], bool]
) -> None:
    """Raises an ElqError unless `folder` is absent, empty, or may be replaced."""
    if not os.path.lexists(folder) or is_empty_folder(folder):
        return
    if not folder.is_dir() or not is_replaceable(folder):
        raise ElqError(f"{folder}: exists and is not {holds}; give another name")


def is_empty_folder(folder: pathlib.Path, *besides: str) -> bool:
    """Returns whether `folder` is a folder that is empty but for files of these names."""
    return folder.is_dir() and all(path.name in besides for path in folder.iterdir())


def take_place(temporary: pathlib.Path, folder: pathlib.Path) -> None:
    """Renames a finished folder to `folder`; an older folder is removed after that."""
    old = temporary.with_name(f"{temporary.name}.old")
    if folder.exists():
        folder.replace(old)
    try:
        temporary.replace(folder)
    except BaseException:
        if old.exists():
            old.replace(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def link_or_copy(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Makes `target` a hard link to a file, or a copy where the file system cannot.

    Symbolic links are followed: the target has the content, wherever the links lead from there.
    In a folder every file is linked or copied.

    Args:
      source: path of a file or folder.
      target: path that is free, or, for a folder, a folder to add to.

    Raises:
      ElqError: `source` or something in it is a link to nothing.
      DiskFullError: the disk is full.
    """
    real = os.path.realpath(source)
    if os.path.isdir(real):
        os.makedirs(target, exist_ok=True)
        for name in sorted(os.listdir(real)):
            link_or_copy(os.path.join(real, name), os.path.join(target, name))
        return
    if not os.path.exists(real):
        kind = "a symbolic link to nothing" if os.path.islink(source) else "no such file"
        raise ElqError(f"{os.fspath(source)}: {kind}; expected a file to copy")
    try:
        os.link(real, target)
    except OSError:
        with open(real, "rb") as file, atomic_write(target) as copy:
            shutil.copyfileobj(file, copy, 1 << 20)


@contextlib.contextmanager
def folder_lock(folder: str | os.PathLike[str], message: str = "") -> Iterator[None]:
    """Locks a folder for this process until the block, or the process, ends.

    Args:
      folder: path of a folder that exists. The file `.lock` is in it meanwhile.
      message: text of the error if it is locked already; by default it advises another folder.

    Raises:
      LockedError: another process has locked it.
    """
    path = pathlib.Path(folder) / ".lock"
    while True:
        with open(path, "wb") as file:
            default = (
                f"{os.fspath(folder)}: another process is working in it; wait for its end, or "
                "give another folder"
            )
            lock_file(file, message or default)
            if not _is_at(file, path):  # The process that held it has removed it just now.
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def lock_file(file: IO[Any], message: str) -> None:
    """Locks an open file until it is closed.

    Raises:
      LockedError: another process has locked it; the text is `message`.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise LockedError(message) from error
    except OSError as error:  # Some network disks have no locks.
        print(
            f"warning: {file.name}: cannot be locked ({error}); make sure that no other process "
            "writes there",
            file=sys.stderr,
        )


def _is_at(file: IO[Any], path: pathlib.Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes a JSON file as `atomic_write` does; see `plain_json` for infinity and NaN."""
    text = json.dumps(plain_json(value), indent=2, ensure_ascii=False) + "\n"
    with atomic_write(path) as file:
        file.write(text.encode("utf-8", "backslashreplace"))  # Of a name that is not UTF-8: \udce9.


def save_array(path: str | os.PathLike[str], values: np.ndarray) -> None:
    """Writes an array as .npy, as `atomic_write` does.

    Raises:
      DiskFullError: the disk is full. NumPy's own writing to a file does not say so.
    """
    with atomic_write(path) as file:
        np.save(types.SimpleNamespace(write=file.write), values)


def array_digest(values: np.ndarray) -> str:
    """Returns the SHA-256 of the file that `save_array` writes."""
    digest = hashlib.sha256()
    np.save(types.SimpleNamespace(write=digest.update), values)
    return digest.hexdigest()


def plain_json(value: Any) -> Any:
    """Returns the value that a JSON file by `write_json` is read back as.

    Tuples become lists. JSON has no infinity and no NaN: they become strings, such as "-inf".
    """
    return json.loads(json.dumps(value), parse_constant=lambda name: str(float(name)))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
