"""Runs the stages of a job side by side: while one works on an item, the next is under way."""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


def overlapped(
    items: Iterable[T], *stages: Callable[[Any], Any], ahead: int = 2
) -> Iterator[tuple[T, Any]]:
    """Yields items with what the stages make of them, in the order of the items.

    Each stage has a thread of its own, and gets what the stage before it returned. Items are read
    in the calling thread. If reading one fails, those before it are yielded before the exception is
    raised; the exception of a stage is raised in place of its item. When the caller stops, what is
    running is finished, and nothing else is begun.

    Args:
      items: items, read one at a time.
      *stages: functions; the first is called with an item.
      ahead: number of items that are read before the results of an earlier one are yielded. 0: all
        is done in the calling thread, so that an item is answered before the next one is read.
    """
    if not ahead:
        for item in items:
            result: Any = item
            for stage in stages:
                result = stage(result)
            yield item, result
        return
    pending: collections.deque[tuple[T, Future[Any]]] = collections.deque()
    threads = [ThreadPoolExecutor(1) for _ in stages]
    with contextlib.ExitStack() as stack:
        for thread in reversed(threads):  # The first stage is stopped first.
            stack.callback(thread.shutdown, cancel_futures=True)
        for item, error in _until_error(items):
            if error is None:
                pending.append((item, _start(item, stages, threads)))
            while len(pending) > (ahead if error is None else 0):
                item, future = pending.popleft()
                yield item, future.result()
            if error is not None:
                raise error
        for item, future in pending:
            yield item, future.result()


def _until_error(items: Iterable[T]) -> Iterator[tuple[T | None, Exception | None]]:
    """Yields (item, None) for each item, and at the end (None, exception) if there was one."""
    items = iter(items)
    while True:
        try:
            item = next(items)
        except StopIteration:
            return
        except Exception as error:
            yield None, error
            return
        yield item, None


def _start(
    item: Any, stages: Sequence[Callable[[Any], Any]], threads: Sequence[ThreadPoolExecutor]
) -> Future[Any]:
    """Hands an item to the threads of all stages; returns the result of the last one."""
    future: Future[Any] = Future()
    future.set_result(item)
    for stage, thread in zip(stages, threads, strict=True):
        future = thread.submit(_run_after, future, stage)
    return future


def _run_after(before: Future[Any], stage: Callable[[Any], Any]) -> Any:
    return stage(before.result())
