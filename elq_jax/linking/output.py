"""Writes lines of results to a file that appears when it is whole, or to a stream."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import pathlib
import shutil
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, BinaryIO

from elq_jax.core.errors import ElqError
from elq_jax.questions.rows import Row
from elq_jax.storage.files import (
    atomic_write,
    full_disk,
    is_gzip_name,
    is_stream,
    lock_file,
    make_folder,
    open_stream,
    output_file,
)
from elq_jax.storage.resume import ResumeRecord

_FULL_DISK = "free some space and give the same command again, which resumes where it stopped"


def check_output(
    output: str | os.PathLike[str] | None, source: str | os.PathLike[str] | int
) -> None:
    """Raises an ElqError if writing `output` would overwrite the input.

    Args:
      output: path of the file to write, as for `open_output`; None if links are printed.
      source: path, or descriptor, of the input.

    Raises:
      ElqError: output and input are the same file, by whatever name.
    """
    if output is None:
        return
    for path in (pathlib.Path(output), *_part_paths(output)):
        if path.exists() and os.path.samefile(path, source):
            raise ElqError(
                f"{output}: writing it would overwrite the input, which is {path}; "
                "give another output"
            )


def check_outside(output: str | os.PathLike[str], linker: pathlib.Path) -> None:
    """Raises an ElqError if writing `output` would replace a file of a linker directory."""
    final = pathlib.Path(os.path.realpath(output))
    if final.exists() and pathlib.Path(os.path.realpath(linker)) in final.parents:
        raise ElqError(f"{output}: is a file of the linker {linker}; give another output")


def open_output(
    output: str | os.PathLike[str], settings: Mapping[str, Any], restart: bool = False
) -> PartFile | Stream:
    """Opens a file, pipe or device for lines of results.

    Args:
      output: path of a file, which is replaced when all lines are written; or of a pipe, a device
        or an open descriptor such as /dev/stdout, which gets each line at once.
      settings: values that the lines depend on besides the rows, as for a `ResumeRecord`.
      restart: whether to remove lines that an interrupted run left.

    Raises:
      ElqError: no file can be written there, an earlier run wrote lines with other settings, or
        another process is writing them.
    """
    path = output_file(output, may_be_gzip=True)
    return Stream(path) if is_stream(path) else PartFile(path, settings, restart)


class Stream:
    """Writes lines to a pipe or a device at once, so that nothing can be resumed."""

    def __init__(self, path: pathlib.Path):
        self._path = path
        self._file: BinaryIO = os.fdopen(open_stream(path), "wb")
        self._lines: Any = self._file
        if is_gzip_name(path):
            self._lines = gzip.GzipFile("", "wb", fileobj=self._file, mtime=0)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        # Closing tries once more to write what could not be written.
        with contextlib.suppress(OSError):
            self._lines.close()
        with contextlib.suppress(OSError):
            self._file.close()

    def has(self, chunk: Sequence[Row]) -> bool:
        """Returns False: lines written to a stream cannot be read again."""
        return False

    def write(self, lines: Iterable[bytes]) -> None:
        """Writes lines; the reader has them when this returns."""
        with full_disk(self._path):
            self._lines.writelines(lines)
            self._lines.flush()
            self._file.flush()

    def finish(self) -> None:
        """Ends the gzip, if it is one; all lines are written."""
        with full_disk(self._path):
            if self._lines is not self._file:
                self._lines.close()


def _part_paths(output: str | os.PathLike[str]) -> tuple[pathlib.Path, pathlib.Path]:
    """Returns the paths of the unfinished lines of `output` and of their settings."""
    final = os.path.realpath(output)
    return pathlib.Path(f"{final}.part"), pathlib.Path(f"{final}.part.json")


class PartFile:
    """Writes lines to `output`.part, beside its settings; the file becomes `output` when whole.

    Attributes:
      path: path of the lines.
    """

    def __init__(
        self, output: str | os.PathLike[str], settings: Mapping[str, Any], restart: bool = False
    ):
        """Opens or makes `output`.part; the arguments are those of `open_output`."""
        self._output = pathlib.Path(os.path.realpath(output))
        self._is_gzip = is_gzip_name(output)  # by the name given, wherever a link of it leads
        self.path, record = _part_paths(self._output)
        self._record = ResumeRecord(record, settings)
        make_folder(self.path.parent)
        if is_stream(self.path):
            raise ElqError(f"{self.path}: a pipe or device, expected unfinished lines; remove it")
        self._file: io.BufferedRandom = open(self.path, "a+b")  # noqa: SIM115 (closed in __exit__)
        self._appending = False
        try:
            lock_file(self._file, f"{self.path}: another process is writing it")
            if restart:
                self._file.truncate(0)
            self._file.seek(0)
            self._check()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> PartFile:
        return self

    def __exit__(self, *_: object) -> None:
        # Closing tries once more to write what did not fit on the disk.
        with contextlib.suppress(OSError):
            self._file.close()

    def _check(self) -> None:
        """Compares the settings with those of earlier lines, or records them."""
        if os.fstat(self._file.fileno()).st_size == 0:
            self._record.write()
            return
        recorded = None
        with contextlib.suppress(ElqError):
            recorded = self._record.read()
        if recorded is None:
            raise self._other(f"its settings in {self._record.path} cannot be read")
        if changes := self._record.changes(recorded):
            raise self._other(changes)

    def _other(self, reason: str) -> ElqError:
        return ElqError(
            f"{self.path}: left by an interrupted run that differs from this one ({reason}); "
            "repeat that run's command to resume it, or start over with --restart"
        )

    def has(self, chunk: Sequence[Row]) -> bool:
        """Returns whether the lines of the next rows are written; if only some are, cuts them off.

        Args:
          chunk: the next rows.

        Raises:
          ElqError: the lines are those of other rows.
        """
        if self._appending:
            return False
        start = self._file.tell()
        for row in chunk:
            line = self._file.readline()
            if not line.endswith(b"\n"):
                self._file.truncate(start)
                self._file.seek(0, os.SEEK_END)
                self._appending = True
                return False
            try:
                result = json.loads(line)
                is_same = result["id"] == row.id and _is_of(result, row)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise self._other(f"it holds {line[:40]!r}") from error
            if not is_same:
                raise self._other(f"it has id {result['id']!r} where the input has {row.id!r}")
        return True

    def write(self, lines: Iterable[bytes]) -> None:
        """Appends lines; they are with the operating system when this returns.

        Raises:
          DiskFullError: the disk is full. Lines already written stay, so a later run can resume.
        """
        with full_disk(self.path, _FULL_DISK):
            self._file.writelines(lines)
            self._file.flush()

    def finish(self) -> None:
        """Gives the file its final name; compresses it if the name ends in .gz.

        Raises:
          ElqError: the file has more lines than there were rows.
          DiskFullError: the disk is full.
        """
        if not self._appending and self._file.readline():
            raise self._other("it has more lines than the input has rows")
        with full_disk(self.path, _FULL_DISK):
            self._file.flush()
            os.fsync(self._file.fileno())
        if self._is_gzip:
            with full_disk(self._output, _FULL_DISK), atomic_write(self._output) as file:
                self._file.seek(0)
                # Without a name and a time, equal lines give equal files.
                with gzip.GzipFile("", "wb", fileobj=file, mtime=0) as compressed:
                    shutil.copyfileobj(self._file, compressed, 1 << 20)
            self.path.unlink()
        else:
            os.replace(self.path, self._output)
        self._record.remove()


def _is_of(line: Mapping[str, Any], row: Row) -> bool:
    """Returns whether a line of the output, which has the id of a row, is of that row."""
    if row.error is not None or (row.spans is not None and "error" in line):
        return line.get("error") == row.error or row.error is None
    spans = [(link["start"], link["end"]) for link in line["links"]]
    return line["text"] == row.text and row.spans in (None, tuple(spans))
