"""Reads files of lines: plain or gzip, regular files, pipes and standard input."""

from __future__ import annotations

import codecs
import contextlib
import gzip
import json
import math
import os
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, TypeVar

import msgspec

from elq_jax.core.errors import DataError, ElqError
from elq_jax.core.strings import check_whole
from elq_jax.core.typed import convert

T = TypeVar("T")

GIT_LFS_POINTER = b"version https://git-lfs.github.com/spec/"

# Kinds of files that are taken for text, by their first bytes.
_OTHER_FILES = {
    "bzip2": b"BZh",
    "xz": b"\xfd7zXZ",
    "zstd": b"\x28\xb5\x2f\xfd",
    "zip": b"PK\x03\x04",
    "Parquet": b"PAR1",
}
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_SAVE_AS_UTF_8 = "save the file as UTF-8 (iconv -f UTF-16 -t UTF-8)"


class LineReader:
    """Reads the lines of a file or stream, no further than the lines yielded.

    Gzip is recognised by the first bytes, not by the name. A byte order mark at the beginning of
    any line is removed: editors write it, and `cat` puts it in the middle.

    Attributes:
      name: name of the file, for messages.
      size: number of bytes of the file on disk; None for a pipe.
    """

    def __init__(self, source: BinaryIO, name: str | os.PathLike[str]):
        """Takes a binary stream that has `peek`, as `open` and `sys.stdin.buffer` give."""
        self.name = os.fspath(name)
        self.size = None
        if source.seekable():
            here = source.tell()
            self.size = source.seek(0, os.SEEK_END)
            source.seek(here)
        self._source = source
        self._read = 0
        head = source.peek(2)[:2]
        self._is_gzip = bool(head) and b"\x1f\x8b".startswith(head)

    @property
    def position(self) -> int:
        """Returns the number of bytes read so far, out of `size`."""
        return self._read if self.size is None else self._source.tell()

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        """Yields (number of the line, line) of lines that are not blank; see `lines`."""
        return ((number, line) for number, line in self.lines() if line.strip())

    def lines(self) -> Iterator[tuple[int, bytes]]:
        r"""Yields (number of the line, line with its end), counted from 1 and cut at "\n".

        Raises:
          DataError: damaged or cut gzip, UTF-16, or a git-lfs pointer.
        """
        number = 0
        try:
            source = gzip.GzipFile(fileobj=self._source) if self._is_gzip else self._source
            for number, line in enumerate(source, 1):
                self._read += len(line)
                if number == 1:
                    self._check_first(line)
                if line := line.removeprefix(codecs.BOM_UTF8):  # A mark alone is no line.
                    yield number, line
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            message = f"not a whole gzip file ({error}); copy or download it again"
            raise DataError(message, self.name, number + 1) from error

    def _check_first(self, line: bytes) -> None:
        if line.startswith(GIT_LFS_POINTER):
            message = (
                "found a pointer of git-lfs instead of the file; fetch the file with `git lfs pull`"
            )
            raise DataError(message, self.name, 1)
        if line.startswith(_UTF_16):
            raise DataError(f"found UTF-16, expected UTF-8; {_SAVE_AS_UTF_8}", self.name, 1)
        for kind, beginning in _OTHER_FILES.items():
            if line.startswith(beginning):
                message = f"found a {kind} file, expected lines of text or gzip; decompress it"
                raise DataError(message, self.name, 1)


@contextlib.contextmanager
def open_lines(path: str | os.PathLike[str]) -> Iterator[LineReader]:
    """Opens a file of lines for reading, or a pipe such as `<(zcat questions.jsonl.gz)`.

    Raises:
      ElqError: there is no such file.
    """
    if not os.path.exists(path) or os.path.isdir(path):
        found = "is a folder" if os.path.isdir(path) else "no such file"
        raise ElqError(f"{os.fspath(path)}: {found}; give an existing .jsonl or .jsonl.gz")
    with open(path, "rb") as source:
        yield LineReader(source, path)


def read_jsonl(path: str | os.PathLike[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (number of the line, object) of a file of JSON lines; skips blank lines.

    Raises:
      ElqError: the file does not exist.
      DataError: a line is not a JSON object in UTF-8, or the file is not whole gzip.
    """
    with open_lines(path) as lines:
        for number, line in lines:
            yield number, parse_object(line, path, number)


def decode_text(line: bytes, path: str | os.PathLike[str], number: int) -> str:
    """Decodes a line of plain text, without its end.

    Raises:
      DataError: the line is not UTF-8, or holds bytes of another encoding (NUL: UTF-16) or of other
        line ends (a carriage return alone: old Macintosh files).
    """
    try:
        text = line.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        message = f"not UTF-8 ({error.reason} at byte {error.start}); save the file as UTF-8"
        raise DataError(message, path, number) from None
    if "\0" in text:
        raise DataError(f"found a NUL, as in UTF-16; {_SAVE_AS_UTF_8}", path, number)
    if "\r" in text:
        raise DataError(_OLD_MAC_LINE_ENDS, path, number)
    return text


def decode_document(reader: LineReader) -> str:
    """Reads a whole file as one text, with its line ends as they are.

    Raises:
      DataError: the file is not UTF-8 text, plain or as gzip.
    """
    content = b"".join(line for _, line in reader.lines())
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        place = error.start - content.rfind(b"\n", 0, error.start) - 1
        message = f"not UTF-8 ({error.reason} at byte {place}); save the file as UTF-8"
        raise DataError(message, reader.name, number) from None
    if 4 * text.count("\0") > len(text):
        raise DataError(f"found many NULs, as in UTF-16; {_SAVE_AS_UTF_8}", reader.name)
    return text


_OLD_MAC_LINE_ENDS = (
    "found a carriage return inside the line, as old Macintosh programs end lines; write line ends "
    r"as \n (tr '\r' '\n')"
)


def parse_object(
    line: bytes | str, path: str | os.PathLike[str], number: int | None = None
) -> dict[str, Any]:
    """Parses a JSON object, or raises a DataError naming the place and what to do.

    Args:
      line: line of a file, or all of a document.
      path: path of the file, for the message.
      number: number of the line, from 1; None: it is all of the document.
    """
    try:
        text = line.decode("utf-8") if isinstance(line, bytes) else line
        value = json.loads(text)
    except UnicodeDecodeError as error:
        message = f"not UTF-8 ({error.reason} at byte {error.start}); save the file as UTF-8"
        raise DataError(message, path, number) from None
    except json.JSONDecodeError as error:
        raise DataError(_not_json(error, text, number is not None), path, number) from None
    except (RecursionError, ValueError) as error:
        deep = isinstance(error, RecursionError)
        reason = "it is nested too deeply" if deep else "a number has thousands of digits"
        message = f"JSON that cannot be read ({reason}): {text.strip()[:60]!r}"
        raise DataError(message, path, number) from None
    if not isinstance(value, dict):
        message = f"expected a JSON object {{...}}, found {type(value).__name__}"
        if isinstance(value, list) and number is not None:
            message += "; write one object a line, not an array (jq -c '.[]')"
        raise DataError(message, path, number)
    return value


def _not_json(error: json.JSONDecodeError, text: str, is_line: bool) -> str:
    """Describes why a line or a document is not JSON, and what else the file may be."""
    stripped = text.strip()
    message = f"invalid JSON ({error.msg} at column {error.colno}): {stripped[:60]!r}"
    if "\0" in text:
        return f"{message}; found a NUL, as in UTF-16; {_SAVE_AS_UTF_8}"
    if not is_line:
        return message
    if "\r" in stripped:
        return f"{message}; {_OLD_MAC_LINE_ENDS}"
    if stripped.startswith("["):
        return f"{message}; expected one object a line, not an array (jq -c '.[]')"
    if stripped.startswith("{") and stripped.endswith(("{", "[", ",", ":")):
        return f"{message}; expected one object a line, not one over several lines (jq -c .)"
    return message


class LineDecoder:
    """Decodes JSON lines, or documents, to a declared type (a msgspec Struct)."""

    def __init__(self, kind: type[T]):
        self._kind = kind
        self._decode = msgspec.json.Decoder(kind).decode

    def __call__(self, line: bytes, path: str | os.PathLike[str], number: int | None = None) -> Any:
        """Decodes a line; the arguments are those of `parse_object`.

        Raises:
          DataError: it is not a JSON object in UTF-8, or a value in it is not of its type.
        """
        try:
            return self._decode(line)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            value = parse_object(line, path, number)
        try:
            _check_values(value, "")
            return convert(value, self._kind)
        except RecursionError:
            raise DataError("JSON that is nested too deeply", path, number) from None
        except ElqError as error:
            raise DataError(str(error), path, number) from None


def _check_values(value: Any, field: str) -> None:
    """Raises an ElqError naming a field where a JSON value is half a string or no finite number."""
    if isinstance(value, dict):
        for name, part in value.items():
            _check_values(name, field)
            _check_values(part, f"{field}.{name}".removeprefix("."))
    elif isinstance(value, list):
        for position, part in enumerate(value):
            _check_values(part, f"{field}[{position}]")
    elif isinstance(value, str):
        check_whole(f"field {field!r}", value)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ElqError(f"field {field!r}: {value}; expected a finite number")
