"""Writes lines of results to a file that appears when it is whole, or to a stream."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, BinaryIO

from elq_jax.core.errors import ElqError
from elq_jax.questions.rows import Row
from elq_jax.storage import part_file
from elq_jax.storage.files import full_disk, is_gzip_name, is_stream, open_stream, output_file


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
    for path in (pathlib.Path(output), *part_file.part_paths(output)):
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


class PartFile(part_file.PartFile):
    """Writes the lines of rows to `output`.part, beside its settings; see `storage.part_file`."""

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
                self._cut(start)
                return False
            try:
                result = json.loads(line)
                is_same = result["id"] == row.id and _is_of(result, row)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise self._other(f"it holds {line[:40]!r}") from error
            if not is_same:
                raise self._other(f"it has id {result['id']!r} where the input has {row.id!r}")
        return True

    def finish(self) -> None:
        """Gives the file its final name; compresses it if the name ends in .gz.

        Raises:
          ElqError: the file has more lines than there were rows.
          DiskFullError: the disk is full.
        """
        if not self._appending and self._file.readline():
            raise self._other("it has more lines than the input has rows")
        super().finish()


def _is_of(line: Mapping[str, Any], row: Row) -> bool:
    """Returns whether a line of the output, which has the id of a row, is of that row."""
    if row.error is not None or (row.spans is not None and "error" in line):
        return line.get("error") == row.error or row.error is None
    if "predictions" in line:  # see `linking.elevant`
        spans = [(link["start_char"], link["end_char"]) for link in line["predictions"]]
    else:
        spans = [(link["start"], link["end"]) for link in line["links"]]
    return line["text"] == row.text and row.spans in (None, tuple(spans))
