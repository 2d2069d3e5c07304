"""Errors whose message is meant for the person who runs the program."""

from __future__ import annotations

import os


class ElqError(ValueError):
    """Something the user gave or asked for cannot be used; the message says what to do.

    Programs print the message without a traceback and exit with status 2.
    """


class DiskFullError(ElqError):
    """There was no room for a file; what was written before it is good to go on with."""


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
