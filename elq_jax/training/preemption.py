"""Stopping a run politely: SIGTERM or Ctrl-C saves at the end of the step and leaves."""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import NoReturn

# BSD's EX_TEMPFAIL: "try again"; launchers restart the same command on it.
EXIT_CODE = 75


class Preemption:
    """While open, SIGTERM and SIGINT set `requested` instead of ending the process.

    A second Ctrl-C interrupts at once.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Preemption:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *unused: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: FrameType | None) -> None:
        del frame
        if number == signal.SIGINT and self.requested:
            raise KeyboardInterrupt
        self.requested = True

    def leave(self, message: str) -> NoReturn:
        """Ends the process with `EXIT_CODE`."""
        print(f"{message}; the same command goes on from there", file=sys.stderr)
        sys.exit(EXIT_CODE)
