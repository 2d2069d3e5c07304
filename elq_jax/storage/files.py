"""Reading line files and writing files that appear only when they are whole."""

from __future__ import annotations

import contextlib
import errno
import gzip
import json
import os
import pathlib
import tempfile
import zlib
from collections.abc import Iterator
from typing import IO, Any, BinaryIO

from elq_jax.core.errors import DataError, DiskFullError, ElqError

_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "wb") -> Iterator[IO[Any]]:
    """Opens a temporary file beside `path` and renames it to `path` when the block succeeds.

    If the block raises (full disk, interrupt), the temporary file is removed and an older file
    at `path` stays as it was.

    Args:
      path: the final name.
      mode: "wb" or "w" (UTF-8).

    Raises:
      DiskFullError: the disk is full.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        encoding = None if "b" in mode else "utf-8"
        with os.fdopen(descriptor, mode, encoding=encoding) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        if isinstance(error, OSError) and error.errno in _DISK_FULL:
            message = f"{path}: not written, the disk is full; free some space and run again"
            raise DiskFullError(message) from error
        raise


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes a JSON file as `atomic_write` does.

    JSON has no infinity and no NaN: they become strings, such as "-inf".
    """
    text = json.dumps(value)
    value = json.loads(text, parse_constant=lambda name: str(float(name)))
    with atomic_write(path, "w") as file:
        json.dump(value, file, indent=2, ensure_ascii=False)
        file.write("\n")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def read_jsonl(path: str | os.PathLike[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (1-based line number, object) from a .jsonl or .jsonl.gz file; skips blank lines.

    Raises:
      ElqError: the file does not exist.
      DataError: a line is not a JSON object, or the file is not UTF-8 or not whole gzip.
    """
    with open_source(path) as source:
        for line_number, line in read_lines(source, path):
            yield line_number, parse_object(line, path, line_number)


def open_source(path: str | os.PathLike[str]) -> BinaryIO:
    """Opens an input file; its `tell()` over the file's size is the part already read.

    Raises:
      ElqError: the file does not exist.
    """
    if not pathlib.Path(path).is_file():
        raise ElqError(f"{path}: no such file; give an existing .jsonl or .jsonl.gz file")
    return open(path, "rb")


def read_lines(source: BinaryIO, path: str | os.PathLike[str]) -> Iterator[tuple[int, bytes]]:
    """Yields (1-based line number, line) of the lines that are not blank.

    Args:
      source: what `open_source` returned.
      path: its name; `.gz` means gzip.

    Raises:
      DataError: a .gz file is damaged or cut short.
    """
    lines = gzip.GzipFile(fileobj=source) if os.fspath(path).endswith(".gz") else source
    line_number = 0
    try:
        for line_number, line in enumerate(lines, 1):
            if line_number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")  # the byte order mark of some editors
            if line.strip():
                yield line_number, line
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        message = f"not a whole gzip file ({error}); copy or download it again"
        raise DataError(message, path, line_number + 1) from error


def parse_object(
    line: str | bytes, path: str | os.PathLike[str], line_number: int
) -> dict[str, Any]:
    """Parses one line as a JSON object, or raises a DataError naming the place."""
    try:
        text = line.decode("utf-8") if isinstance(line, bytes) else line
        value = json.loads(text)
    except UnicodeDecodeError as error:
        message = f"not UTF-8 ({error.reason} at byte {error.start}); save the file as UTF-8"
        raise DataError(message, path, line_number) from error
    except json.JSONDecodeError as error:
        shown = text.strip()[:60]
        message = f"invalid JSON ({error.msg} at column {error.colno}): {shown!r}"
        raise DataError(message, path, line_number) from error
    except (RecursionError, ValueError) as error:
        deep = isinstance(error, RecursionError)
        reason = "it is nested too deeply" if deep else "a number has thousands of digits"
        message = f"JSON that cannot be read ({reason}): {text.strip()[:60]!r}"
        raise DataError(message, path, line_number) from error
    if not isinstance(value, dict):
        message = f"expected a JSON object {{...}}, found {type(value).__name__}"
        raise DataError(message, path, line_number)
    return value
