"""Errors whose message is meant for the person who runs the program."""

from __future__ import annotations

import numbers
import os
from typing import Any


class ElqError(ValueError):
    """Error: an input, setting or request cannot be used; the message says what to do.

    Programs print the message without a traceback and exit with status 2.
    """


class DiskFullError(ElqError):
    """Error: the disk has no room for a file; a later run can resume from the files before it."""


class LockedError(ElqError):
    """Error: another process is working in a folder that only one may change at a time."""


class DataError(ElqError):
    """Error: an input file cannot be used; the message begins with its path and line.

    Args:
      message: text that says what was found, what was expected, what to do.
      path: path of the file.
      line: line number from 1, if the file is read by lines.
    """

    def __init__(self, message: str, path: str | os.PathLike[str], line: int | None = None):
        self.path, self.line = os.fspath(path), line
        place = self.path if line is None else f"{self.path}:{line}"
        super().__init__(f"{place}: {message}")


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Raises an ElqError unless an argument or setting is an integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise ElqError(f"{name}: {value!r}; expected an integer, at least {least}")
