"""Writes lines to a file that appears when it is whole; an interrupted run is resumed."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from elq_jax.core.errors import ElqError
from elq_jax.storage.files import (
    atomic_write,
    full_disk,
    is_gzip_name,
    is_stream,
    lock_file,
    make_folder,
)
from elq_jax.storage.resume import ResumeRecord

_FULL_DISK = "free some space and give the same command again, which resumes where it stopped"


def part_paths(output: str | os.PathLike[str]) -> tuple[pathlib.Path, pathlib.Path]:
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
        """Opens or makes `output`.part.

        Args:
          output: path of the file.
          settings: everything that the lines depend on, as for a `ResumeRecord`.
          restart: whether to remove lines that an interrupted run left.

        Raises:
          ElqError: an interrupted run with other settings wrote there, or another process does.
        """
        self._output = pathlib.Path(os.path.realpath(output))
        self._is_gzip = is_gzip_name(output)  # by the name given, wherever a link of it leads
        self.path, record = part_paths(self._output)
        self._record, self._dtype = ResumeRecord(record, settings), settings.get("dtype")
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
            # "auto" can take another type on a busy machine, or on another one.
            dtype = recorded.get("dtype")
            is_other = dtype not in (None, self._dtype)
            raise self._other(changes, f" with --dtype={dtype}" if is_other else "")

    def _other(self, reason: str, options: str = "") -> ElqError:
        return ElqError(
            f"{self.path}: left by an interrupted run that differs from this one ({reason}); "
            f"repeat that run's command{options} to resume it, or start over with --restart"
        )

    def written(self) -> Iterator[bytes]:
        """Yields the whole lines that an interrupted run left, then cuts off what follows them."""
        while (line := self._file.readline()).endswith(b"\n"):
            yield line
        self._cut(self._file.tell() - len(line))

    def _cut(self, size: int) -> None:
        """Cuts the file to a size; lines are appended from now on."""
        self._file.truncate(size)
        self._file.seek(0, os.SEEK_END)
        self._appending = True

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
          DiskFullError: the disk is full.
        """
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
