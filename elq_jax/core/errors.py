"""Errors whose message is meant for the person who runs the program."""

from __future__ import annotations

import numbers
import os
from typing import Any


class ElqError(ValueError):
    """Something the user gave or asked for cannot be used; the message says what to do.

    Programs print the message without a traceback and exit with status 2.
    """


class DiskFullError(ElqError):
    """There was no room for a file; what was written before can be resumed from."""


class DataError(ElqError):
    """A problem at one place of an input file.

    Args:
      message: what was found, what was expected, what to do.
      path: the file.
      line: 1-based line number, when the file is read by lines.
    """

    def __init__(self, message: str, path: str | os.PathLike[str], line: int | None = None):
        self.path, self.line = os.fspath(path), line
        place = self.path if line is None else f"{self.path}:{line}"
        super().__init__(f"{place}: {message}")


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Raises an ElqError unless an argument or setting is an integer, and not too small."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise ElqError(f"{name}: {value!r}; expected an integer, at least {least}")
