"""Puts the items of many callers into batches, which two stages work on side by side.

A batch takes waiting items in their order, as far as they have the same key. While one thread runs
the first stage of a batch (tokenising and encoding), another runs the second stage of the batch
before it (search and decoding).

A large batch costs less per item than a small one, so batches begin at these times:
  1. A full batch begins as soon as the first stage is free.
  2. Another one begins when no batch is worked on. Two half batches side by side cost more than one
     after the other.
  3. It begins at once if it is not smaller than the batch before. Otherwise, those who got their
     answers from that batch are probably about to ask again, and the batch waits until nothing has
     arrived for a few milliseconds. So a single client never waits.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import math
from collections.abc import Awaitable, Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

_ASKED_AFTER = 0.02  # seconds of waiting, after which callers are asked whether they still wait
_ASKED_AGAIN = 1.0  # seconds after which all are asked again, where the queue is full
_IN_STAGES = 2  # batches: one in each stage

Gone = Callable[[], Awaitable[bool]]


class QueueFullError(Exception):
    """Error: too many items wait.

    Attributes:
      seconds: seconds after which there is probably room.
    """

    def __init__(self, seconds: float):
        super().__init__("too many questions wait")
        self.seconds = seconds


class DeadlineError(Exception):
    """Error: items were not finished in time."""


class StoppedError(Exception):
    """Error: the worker takes no more items."""


class GoneError(Exception):
    """Error: the caller went away before its items were worked on."""


@dataclasses.dataclass(eq=False, slots=True)
class _Job:
    """Holds the items of one caller.

    Attributes:
      key: key of its batches.
      values: items.
      results: results so far, in the order of the items.
      missing: number of items without a result.
      future: future that the caller waits for.
      gone: function that says whether the caller went away.
      arrived: time of the event loop.
    """

    key: Hashable
    values: Sequence[Any]
    results: list[Any]
    missing: int
    future: asyncio.Future[list[Any]]
    gone: Gone | None
    arrived: float


class Batcher:
    """Collects items in batches and hands them to two stages, each in a thread of its own.

    If a stage raises an exception, the jobs of the batch are done again one by one, so that only
    those fail that fail by themselves; the worker lives on.

    Args:
      first: function of a list of items and their key, whose result `second` gets.
      second: function that returns one result for each item, in their order.
      batch_size: largest number of items of a batch; fewer if they weigh more than this.
      wait: seconds without an arrival after which a batch that is not full begins.
      max_waiting: number of items that may wait.
      on_batch: function called with the number of items of each batch, for metrics.
      weight: function that returns how many ordinary items an item is worth.
    """

    def __init__(
        self,
        first: Callable[[list[Any], Any], Any],
        second: Callable[[Any], Sequence[Any]],
        *,
        batch_size: int,
        wait: float,
        max_waiting: int,
        on_batch: Callable[[int], None] = lambda count: None,
        weight: Callable[[Any], int] = lambda item: 1,
    ):
        self._stages = first, second
        self._batch_size, self._wait, self._max_waiting = batch_size, wait, max_waiting
        self._on_batch, self._weight = on_batch, weight
        self._queue: collections.deque[tuple[_Job, int]] = collections.deque()
        self._threads = [ThreadPoolExecutor(1, name) for name in ("encode", "search")]
        self._room = asyncio.Semaphore(_IN_STAGES)
        self._changed = asyncio.Event()  # Something arrived, or a batch was finished.
        self._under_way: set[asyncio.Task[None]] = set()
        self._loop_task: asyncio.Task[None] | None = None
        self._stopped = False
        self._busy = 0  # batches in the stages
        self._seconds_per_item = 0.0
        self._last_size = 0  # items of the last batch
        self._last_asked = -math.inf  # time when all callers were asked whether they still wait
        self._last_change = 0.0  # time of the last arrival, or of the last answers

    @property
    def waiting(self) -> int:
        """Returns the number of items that wait."""
        return len(self._queue)

    def start(self) -> None:
        """Starts to work, in the running event loop."""
        self._loop_task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Takes no more items, finishes those that are there, and ends the threads."""
        self._stopped = True
        self._changed.set()
        if self._loop_task is not None:
            await self._loop_task
        while self._under_way:
            await asyncio.wait(self._under_way)
        for thread in self._threads:
            thread.shutdown(cancel_futures=True)

    async def __call__(
        self,
        values: Sequence[Any],
        key: Hashable = None,
        *,
        timeout: float | None = None,
        gone: Gone | None = None,
    ) -> list[Any]:
        """Works on items, together with those of other callers that have the same key.

        Args:
          values: items.
          key: key that items of a batch share.
          timeout: seconds within which the items must be finished; None: any.
          gone: asynchronous function that says whether the caller went away; it is asked before its
            items are worked on.

        Returns:
          one result for each item.

        Raises:
          QueueFullError, DeadlineError, GoneError, StoppedError: the items were not worked on.
          Exception: what a stage raised.
        """
        if self._stopped:
            raise StoppedError
        if not values:
            return []
        loop = asyncio.get_running_loop()
        if len(self._queue) + len(values) > self._max_waiting:
            await self._drop_unwanted()
            if self._queue and len(self._queue) + len(values) > self._max_waiting:
                raise QueueFullError(self._seconds_per_item * len(self._queue))
            if self._stopped:
                raise StoppedError
        job = _Job(
            key,
            values,
            [None] * len(values),
            len(values),
            loop.create_future(),
            gone,
            loop.time(),
        )
        self._queue.extend((job, place) for place in range(len(values)))
        self._last_change = job.arrived
        self._changed.set()
        deadline = None if timeout is None else loop.call_later(timeout, _expire, job.future)
        try:
            return await job.future
        finally:
            if deadline is not None:
                deadline.cancel()

    async def _run(self) -> None:
        while True:
            await self._room.acquire()
            items = await self._next_batch()
            if items is None:
                return
            self._on_batch(len(items))
            self._last_size = len(items)
            self._busy += 1
            started = asyncio.get_running_loop().time()
            halfway = await self._try(
                0, [job.values[place] for job, place in items], items[0][0].key
            )
            task = asyncio.create_task(self._finish(items, halfway, started))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)

    async def _next_batch(self) -> list[tuple[_Job, int]] | None:
        """Waits for the next batch; None: the worker is stopped and nothing waits."""
        while True:
            self._changed.clear()
            if not self._queue:
                if self._stopped:
                    return None
                await self._changed.wait()
                continue
            if not self._may_begin():
                await self._change()
                continue
            if items := await self._taken():
                return items

    def _may_begin(self) -> bool:
        """Returns whether the next batch begins now; the module says when it does."""
        if len(self._queue) >= self._batch_size or self._stopped:
            return True
        if self._busy:
            return False
        if len(self._queue) >= self._last_size:
            return True
        return asyncio.get_running_loop().time() - self._last_change >= self._wait

    async def _change(self) -> None:
        """Waits until something arrives or a batch is finished, or else until `wait` is over."""
        left = None
        if not self._busy:
            left = self._last_change + self._wait - asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(left):
                await self._changed.wait()
        except TimeoutError:
            pass

    async def _taken(self) -> list[tuple[_Job, int]]:
        """Takes the items of a batch from the queue, without those that nobody waits for."""
        key = None
        items: list[tuple[_Job, int]] = []
        others: list[tuple[_Job, int]] = []
        room = self._batch_size
        while self._queue and room > 0:
            job, place = self._queue.popleft()
            if not await self._is_wanted(job):
                continue
            if not items:
                key = job.key
            if job.key != key:
                others.append((job, place))
                continue
            weight = self._weight(job.values[place])
            if items and weight > room:
                others.append((job, place))
                break
            items.append((job, place))
            room -= weight
        self._queue.extendleft(reversed(others))
        return items

    async def _drop_unwanted(self) -> None:
        """Takes from the queue what nobody waits for; asks the callers once a second at most."""
        now = asyncio.get_running_loop().time()
        if now >= self._last_asked + _ASKED_AGAIN:
            self._last_asked = now
            for job in {id(job): job for job, _ in self._queue}.values():
                await self._is_wanted(job)
        self._queue = collections.deque(
            entry for entry in self._queue if not entry[0].future.done()
        )

    async def _is_wanted(self, job: _Job) -> bool:
        """Returns whether a caller still waits for its items."""
        if job.future.done():
            return False
        waited = asyncio.get_running_loop().time() - job.arrived
        if job.gone is not None and waited > _ASKED_AFTER and await job.gone():
            if not job.future.done():
                job.future.set_exception(GoneError())
            return False
        return True

    async def _try(self, stage: int, *arguments: Any) -> Any:
        """Runs a stage in its thread; returns its result, or the exception that it raised."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._threads[stage], self._stages[stage], *arguments)
        except Exception as error:
            return error

    async def _finish(self, items: list[tuple[_Job, int]], halfway: Any, started: float) -> None:
        """Runs the second stage of a batch, and answers its callers."""
        results = halfway
        if not isinstance(halfway, Exception):
            results = await self._try(1, halfway)
        self._room.release()
        self._busy -= 1
        self._last_change = asyncio.get_running_loop().time()
        self._changed.set()
        if isinstance(results, Exception):
            await self._one_by_one(items, results)
        else:
            for (job, place), result in zip(items, results, strict=True):
                _put(job, place, result)
        self._seconds_per_item = (self._last_change - started) / len(items)

    async def _one_by_one(self, items: list[tuple[_Job, int]], error: Exception) -> None:
        """Does the jobs of a batch that failed again, each by itself."""
        jobs: dict[int, list[tuple[_Job, int]]] = collections.defaultdict(list)
        for job, place in items:
            jobs[id(job)].append((job, place))
        for own in jobs.values():
            job, results = own[0][0], error
            if len(jobs) > 1 and not job.future.done():
                results = await self._try(0, [job.values[place] for _, place in own], job.key)
                if not isinstance(results, Exception):
                    results = await self._try(1, results)
            if isinstance(results, Exception):
                if not job.future.done():
                    job.future.set_exception(results)
                continue
            for (_, place), result in zip(own, results, strict=True):
                _put(job, place, result)


def _expire(future: asyncio.Future[Any]) -> None:
    """Tells a caller that its items were not finished in time."""
    if not future.done():
        future.set_exception(DeadlineError())


def _put(job: _Job, place: int, result: Any) -> None:
    """Adds a result to those of a job; the last one answers the caller."""
    job.results[place] = result
    job.missing -= 1
    if not job.missing and not job.future.done():
        job.future.set_result(job.results)
