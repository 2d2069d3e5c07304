"""Stops a run at SIGTERM or Ctrl-C: the step ends, a checkpoint is saved, the process exits."""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import NoReturn

import jax
from jax.experimental import multihost_utils

# BSD's EX_TEMPFAIL: "try again"; launchers restart the same command on it.
EXIT_CODE = 75


class Preemption:
    """Catches SIGTERM and SIGINT while it is open; `requested` reports them after a step.

    A second Ctrl-C interrupts at once. Where several processes work together, JAX notices a SIGTERM
    to any of them and agrees on a step that none has passed, so that all save the same one; the
    first Ctrl-C interrupts at once then.
    """

    def __init__(self) -> None:
        self._requested = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Preemption:
        if jax.process_count() == 1:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *unused: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def requested(self, step: int) -> bool:
        """Returns whether to stop after this step; is to be called once after every step."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._requested

    def _request(self, number: int, frame: FrameType | None) -> None:
        del frame
        if number == signal.SIGINT and self._requested:
            raise KeyboardInterrupt
        self._requested = True

    def leave(self, message: str) -> NoReturn:
        """Prints a message and ends the process with `EXIT_CODE`."""
        print(f"{message}; the same command resumes there", file=sys.stderr)
        sys.exit(EXIT_CODE)
