"""Reads the rows of SQL dumps of MediaWiki's tables as a stream, without a database."""

from __future__ import annotations

import codecs
import gzip
import os
import re
import zlib
from collections.abc import Iterator

from elq_jax.core.errors import DataError

_CHUNK = 1 << 20
_INSERT = re.compile(rb"INSERT INTO `?(\w+)`? VALUES ")
# One value: a string in quotes with backslash escapes, a number, or NULL.
_VALUE = re.compile(rb"""_?(?:binary )?'((?:[^'\\]|\\.|'')*)'|([^,()'\s]+)""", re.DOTALL)
_ROW = re.compile(rb"""\s*\(((?:[^'()]|'(?:[^'\\]|\\.|'')*')*)\)\s*([,;])""", re.DOTALL)
_ESCAPE = re.compile(rb"\\(.)|''", re.DOTALL)
_ESCAPED = {b"0": b"\0", b"n": b"\n", b"r": b"\r", b"t": b"\t", b"Z": b"\x1a", b"b": b"\b"}

Value = bytes | None


def read_rows(path: str | os.PathLike[str], table: str) -> Iterator[list[Value]]:
    """Yields the rows of a table, each as a list of its values as bytes; None for NULL.

    Args:
      path: path of a dump such as page_props.sql.gz, gzip or plain, as mysqldump writes it.
      table: name of the table.

    Raises:
      DataError: the file is of another table, damaged, or ends early.
    """
    buffer, inside, is_seen = b"", False, False
    for data in _read(path):
        buffer += data
        position = 0
        while True:
            if not inside:
                insert = _INSERT.search(buffer, position)
                if not insert:
                    position = max(position, len(buffer) - 256)
                    break
                if insert[1].decode() != table:
                    message = f"holds the table {insert[1].decode()}, expected {table}"
                    raise DataError(f"{message}; give the dump of that table", path)
                position, inside, is_seen = insert.end(), True, True
            row = _ROW.match(buffer, position)
            if not row:
                if len(buffer) - position > 64 << 20:
                    message = f"found {buffer[position : position + 40]!r}, expected a row"
                    raise DataError(f"{message}; download it again", path)
                break
            yield [_value(value) for value in _VALUE.finditer(row[1])]
            position, inside = row.end(), row[2] == b","
        buffer = buffer[position:]
    if inside:
        raise DataError("ends inside a row; download it again", path)
    if not is_seen and b"CREATE TABLE" not in buffer and not _is_dump_of(path, table):
        raise DataError(f"found no INSERT INTO {table}; give the dump of that table", path)


def _is_dump_of(path: str | os.PathLike[str], table: str) -> bool:
    """Returns whether the head of a file without rows makes the table: it is empty then."""
    head = next(_read(path), b"")
    return f"CREATE TABLE `{table}`".encode() in head


def _value(match: re.Match[bytes]) -> Value:
    if match[1] is None:
        return None if match[2] == b"NULL" else match[2]
    text = match[1]
    if b"\\" in text or b"''" in text:
        text = _ESCAPE.sub(
            lambda escape: b"'" if escape[1] is None else _ESCAPED.get(escape[1], escape[1]), text
        )
    return text


def _read(path: str | os.PathLike[str]) -> Iterator[bytes]:
    with open(path, "rb") as file:
        is_gzip = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        source = gzip.GzipFile(fileobj=file) if is_gzip else file
        try:
            while data := source.read(_CHUNK):
                yield data
        except (EOFError, OSError, zlib.error) as error:
            raise DataError(f"damaged gzip ({error}); download it again", path) from None


def text(value: Value) -> str:
    """Returns a value as text; bytes that are not UTF-8 become U+FFFD."""
    return codecs.decode(value or b"", "utf-8", "replace")
