"""Keeps the records that one task leaves for others, divided by the task that will read them.

A file of records has sections; a task of the next stage reads its own section of every file.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import msgspec

from elq_jax.storage.files import atomic_write

T = TypeVar("T")

_BUFFERED = 16 << 20
_encode = msgspec.msgpack.encode


class UnfinishedError(OSError):
    """Error: a task cannot be done now, whatever its input; a later run can resume."""


def partition(title: str, count: int) -> int:
    """Returns which of so many parts a title belongs to; the same on all machines."""
    digest = hashlib.blake2b(title.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") % count


class SectionWriter:
    """Writes records to the sections of a file, which appears when the block succeeds.

        with SectionWriter(path, 8) as sections:
            sections.add(partition(title, 8), [title, 17])

    Args:
      path: path of the file.
      count: number of sections.
    """

    def __init__(self, path: str | os.PathLike[str], count: int):
        self._atomic = atomic_write(path)
        self._records: list[list[bytes]] = [[] for _ in range(count)]
        self._pieces: list[list[tuple[int, int]]] = [[] for _ in range(count)]
        self._size = self._position = 0

    def __enter__(self) -> SectionWriter:
        self._file = self._atomic.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if error[0] is None:
            self._pack()
            index = _encode(self._pieces)
            self._file.write(index + len(index).to_bytes(8, "little"))
        self._atomic.__exit__(*error)

    def add(self, section: int, record: Any) -> None:
        """Adds a record to a section.

        Raises:
          DiskFullError: the disk is full.
        """
        data = _encode(record)
        self._records[section].append(data)
        self._size += len(data)
        if self._size > _BUFFERED:
            self._pack()

    def _pack(self) -> None:
        """Writes the records that are in memory, those of each section as one compressed list."""
        for records, pieces in zip(self._records, self._pieces, strict=True):
            if records:
                header = b"\xdd" + len(records).to_bytes(4, "big")  # of a list, in msgpack
                data = zlib.compress(header + b"".join(records), 1)
                self._file.write(data)
                pieces.append((self._position, len(data)))
                self._position += len(data)
                records.clear()
        self._size = 0


def read_section(path: str | os.PathLike[str], section: int, kind: type[T]) -> Iterator[T]:
    """Yields the records of a section.

    Args:
      path: path of a file that a `SectionWriter` wrote.
      section: number of the section.
      kind: type of the records.

    Raises:
      UnfinishedError: the file is damaged.
    """
    decode = msgspec.msgpack.Decoder(list[kind]).decode
    try:
        with open(path, "rb") as file:
            file.seek(-8, os.SEEK_END)
            size = int.from_bytes(file.read(8), "little")
            file.seek(-8 - size, os.SEEK_END)
            pieces = msgspec.msgpack.decode(file.read(size), type=list[list[tuple[int, int]]])
            for position, length in pieces[section]:
                file.seek(position)
                yield from decode(zlib.decompress(file.read(length)))
    except (OSError, zlib.error, msgspec.DecodeError, IndexError) as error:
        if isinstance(error, OSError) and error.errno and error.filename:
            raise
        message = f"{path}: damaged ({error}); remove its folder and run the same command again"
        raise UnfinishedError(message) from None


def read_sections(paths: Iterable[pathlib.Path], section: int, kind: type[T]) -> Iterator[T]:
    """Yields the records of one section of several files, in their order."""
    for path in paths:
        yield from read_section(path, section, kind)
