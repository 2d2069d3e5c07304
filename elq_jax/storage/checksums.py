"""Compares files with their checksums, and reads JSON files of a declared type."""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Annotated, Any, TypeVar

import msgspec

from elq_jax.core.errors import DataError
from elq_jax.storage import layout
from elq_jax.storage.files import check_not_a_pointer
from elq_jax.storage.resume import digest

T = TypeVar("T")

_SHA256 = r"[0-9a-f]{64}"
Sha256 = Annotated[str, msgspec.Meta(pattern=f"^{_SHA256}$")]

# Files of so many bytes together are compared with their checksums whenever they are opened, which
# takes a quarter of a second; larger ones only by `python -m elq_jax.verify`.
CHEAP_BYTES = 256 << 20


def are_cheap(paths: Iterable[str | os.PathLike[str]]) -> bool:
    """Returns whether files are small enough to compare with checksums at every opening."""
    return sum(os.path.getsize(path) for path in paths) <= CHEAP_BYTES


_begun: dict[tuple[Any, ...], Future[str]] = {}


def begin_digests(folder: str | os.PathLike[str]) -> None:
    """Begins to compute the checksums that opening a linker directory compares, in a thread.

    Programs call this before they import JAX, which takes about as long. `check_digest` takes the
    results, unless a file has changed since. A folder that is none is left to what opens it.
    """
    folder = pathlib.Path(folder)
    parts = [folder / layout.EMBEDDINGS, folder / layout.NAMES, folder / layout.WORDS]
    groups = [[folder / layout.PARAMETERS], *(sorted(part.glob("*.npy")) for part in parts)]
    pool = ThreadPoolExecutor(1)
    for paths in groups:
        paths = [path for path in paths if path.is_file()]
        for path in paths if are_cheap(paths) else ():
            _begun[_identity(path)] = pool.submit(digest, path)
    pool.shutdown(wait=False)


def _identity(path: pathlib.Path) -> tuple[Any, ...]:
    """Identifies a file and its content, without reading it."""
    status = path.stat()
    return os.path.realpath(path), status.st_ino, status.st_size, status.st_mtime_ns


def check_digest(path: str | os.PathLike[str], expected: str, advice: str) -> None:
    """Compares a file with its SHA-256.

    Args:
      path: path of the file.
      expected: SHA-256 of the file, 64 hexadecimal digits.
      advice: text for the error message on what to do.

    Raises:
      DataError: they differ, or the file is missing.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise DataError(f"missing; {advice}", path)
    check_not_a_pointer(path)
    begun = _begun.pop(_identity(path), None)
    if (actual := begun.result() if begun else digest(path)) != expected:
        raise DataError(f"damaged: its SHA-256 is {actual}, expected {expected}; {advice}", path)


def read_digests(path: str | os.PathLike[str], advice: str) -> dict[str, str]:
    """Reads a file of lines "SHA-256  name", as `sha256sum` writes and checks them.

    Raises:
      DataError: there is no such file, it holds no checksum, or a line is not a checksum.
    """
    path = pathlib.Path(path)
    if not path.is_file():  # Reading a pipe might wait forever.
        raise DataError(f"not a file, expected checksums; {advice}", path)
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    digests = {}
    for number, line in enumerate(lines, 1):
        value, separator, name = line.partition("  ")
        if not re.fullmatch(_SHA256, value) or not separator or not name:
            raise DataError(
                f"found {line[:80]!r}, expected a SHA-256 and a name; {advice}", path, number
            )
        digests[name] = value
    if not digests:
        raise DataError(f"holds no checksum; {advice}", path)
    return digests


def read_json(path: str | os.PathLike[str], kind: type[T], advice: str) -> T:
    """Reads a JSON file and checks the types and ranges of its values.

    A byte order mark, as some editors write it, is skipped.

    Args:
      path: path of the file.
      kind: type to convert to: a `msgspec.Struct`, a dataclass, `dict[str, Any]`.
      advice: text for the error message on what to do.

    Raises:
      DataError: the file is not JSON, or not of this type; the message says where.
    """
    check_not_a_pointer(path)
    content = pathlib.Path(path).read_bytes().removeprefix(b"\xef\xbb\xbf")
    try:
        value: Any = msgspec.json.decode(content)
        return msgspec.convert(value, kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        is_json = isinstance(error, msgspec.ValidationError)
        raise DataError(f"{error if is_json else f'not JSON ({error})'}; {advice}", path) from error
