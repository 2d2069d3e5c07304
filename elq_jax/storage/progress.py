"""Shows work done, rate and time left on stderr."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def progress(description: str, total: int | None, unit: str) -> Iterator[Callable[[float], None]]:
    """Shows work done, rate and time left on stderr: a bar on a terminal, else a line now and then.

    Args:
      description: words for the work.
      total: number of units of work; None where it is not known (a pipe).
      unit: name of the units, plural.

    Yields:
      a function to call with the number of units just done, or with a share of one. The rate
      leaves out its first call, for units of an earlier run or slowed down by compilation.
    """
    if sys.stderr and sys.stderr.isatty():  # None where it is closed
        with _bar(description, total, unit) as advance:
            yield advance
    else:
        yield _Lines(description, total, unit).advance


@contextlib.contextmanager
def _bar(description: str, total: int | None, unit: str) -> Iterator[Callable[[float], None]]:
    from rich import progress as rich_progress
    from rich.console import Console

    columns = (
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        rich_progress.TaskProgressColumn(),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TextColumn("{task.fields[rate]}"),
        rich_progress.TimeRemainingColumn(),
    )
    with rich_progress.Progress(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task(description, total=total, rate="")
        started, done = None, 0

        def advance(count: float) -> None:
            nonlocal started, done
            if started is None:
                started = time.monotonic()
            else:
                done += count
            rate = f"{_number(done / max(time.monotonic() - started, 1e-9))} {unit}/s"
            rate = rate if done else ""
            bars.update(task, advance=count, rate=rate)

        yield advance


class _Lines:
    """Prints progress for logs: after ten seconds, then ever more seldom, and at the end.

    It prints nothing if all is done in ten seconds.
    """

    def __init__(self, description: str, total: int | None, unit: str):
        self._text, self._total, self._unit = description, total, unit
        self._done = 0.0
        self._first: tuple[float, float] | None = None
        self._printed: float | None = None

    def advance(self, count: float) -> None:
        now = time.monotonic()
        self._done = round(self._done + count, 9)  # Shares add up to a whole.
        if self._first is None:
            self._first = now, self._done
            return
        started, before = self._first
        last = started if self._printed is None else self._printed
        total = math.inf if self._total is None else self._total
        finished = count > 0 and self._done >= total and self._printed is not None
        if finished or now - last > max(10, (now - started) / 20):
            rate = (self._done - before) / max(now - started, 1e-9)
            of, left = "", ""
            if self._total is not None:
                of = f" of {self._total:,}"
                left = f", {_duration((total - self._done) / max(rate, 1e-9))} left"
            print(
                f"{self._text}: {_number(self._done)}{of} {self._unit}, {_number(rate)}/s{left}",
                file=sys.stderr,
            )
            self._printed = now


def _number(value: float) -> str:
    """Writes a number with at least three digits, and a whole one as it is."""
    if value == round(value) or value >= 100:
        return f"{value:,.0f}"
    return f"{value:.{2 if value >= 1 else 3}f}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
