"""Batches of many callers: order, keys, limits, failures. No model, no HTTP."""

import asyncio
import threading
import time

import pytest

from elq_jax.serving.batching import (
    Batcher,
    DeadlineError,
    GoneError,
    QueueFullError,
    StoppedError,
)

PATIENCE = 300  # seconds, on a busy machine


class Worker:
    """Two stages that square numbers, and write down what they were given."""

    def __init__(self, seconds=0.0):
        self.seconds, self.batches, self.free = seconds, [], threading.Event()
        self.num_begun = 0
        self.free.set()

    def first(self, items, key):
        self.num_begun += 1
        assert self.free.wait(PATIENCE)
        self.batches.append((key, list(items)))
        time.sleep(self.seconds)
        if "bad" in items:
            raise ValueError("bad item")
        return items

    def second(self, items):
        time.sleep(self.seconds)
        if "worse" in items:
            raise ZeroDivisionError
        return [item * item for item in items]


async def begun(worker, count=1):
    """Waits until some batches have begun."""
    while worker.num_begun < count:
        await asyncio.sleep(0.001)


def run(scenario, worker=None, **options):
    """Runs `scenario(batcher, worker)`; every thread and task has ended when it returns."""
    worker = worker or Worker()
    options = {"batch_size": 4, "wait": 0.0, "max_waiting": 1000} | options

    async def main():
        batcher = Batcher(worker.first, worker.second, **options)
        batcher.start()
        try:
            return await scenario(batcher, worker)
        finally:
            worker.free.set()
            await batcher.stop()

    return asyncio.run(main())


def test_callers_get_their_own_results():
    async def scenario(batcher, worker):
        values = [list(range(start, start + start % 7)) for start in range(40)]
        results = await asyncio.gather(*map(batcher, values))
        return values, results, worker.batches

    values, results, batches = run(scenario)
    assert results == [[value * value for value in own] for own in values]
    assert max(len(items) for _, items in batches) == 4
    # First come, first served, and nothing twice.
    assert [item for _, items in batches for item in items] == [v for own in values for v in own]


def test_heavy_items_fill_batches():
    async def scenario(batcher, worker):
        assert await batcher([1, 2, 9, 1, 3, 1, 1, 1]) == [1, 4, 81, 1, 9, 1, 1, 1]
        return [items for _, items in worker.batches]

    expected = [[1, 2], [9], [1, 3], [1, 1, 1]]
    assert run(scenario, weight=lambda item: item) == expected


def test_an_idle_worker_starts_at_once_and_a_busy_one_collects():
    async def scenario(batcher, worker):
        worker.free.clear()
        tasks = [asyncio.create_task(batcher([i])) for i in range(9)]
        await asyncio.sleep(0.05)
        worker.free.set()
        await asyncio.gather(*tasks)
        return [items for _, items in worker.batches]

    assert run(scenario) == [[0, 1, 2, 3], [4, 5, 6, 7], [8]]


def test_a_batch_smaller_than_the_one_before_waits_for_those_who_were_answered():
    async def client(batcher, number):
        if number:
            await begun(batcher.worker)
        for _ in range(5):
            await batcher([number])
            for _ in range(5):  # The next question takes a while, but not as long as the wait.
                await asyncio.sleep(0)

    async def scenario(batcher, worker):
        batcher.worker = worker
        await asyncio.gather(*(client(batcher, number) for number in range(4)))
        return [len(items) for _, items in worker.batches]

    # The first is alone, since an idle worker starts at once; from then on all are together.
    sizes = run(scenario, Worker(0.02), wait=PATIENCE, batch_size=100)
    assert sizes == [1, 3, 4, 4, 4, 4]


def test_a_single_client_never_waits():
    async def scenario(batcher, worker):
        started = time.monotonic()
        for number in range(5):
            await batcher([number])
        return time.monotonic() - started

    assert run(scenario, wait=PATIENCE) < PATIENCE


def test_a_batch_that_nobody_joins_begins_after_the_wait():
    async def scenario(batcher, worker):
        await asyncio.gather(batcher([1]), batcher([2]))
        started = time.monotonic()
        await batcher([3])
        return time.monotonic() - started

    assert 0.08 < run(scenario, wait=0.1) < PATIENCE


def test_stages_overlap():
    """The second stage of a batch ends only after the first stage of the next one has begun."""

    class Overlapping(Worker):
        def second(self, items):
            end = time.monotonic() + PATIENCE
            while self.num_begun < min(5, items[0] + 2) and time.monotonic() < end:
                time.sleep(0.001)
            assert time.monotonic() < end
            return super().second(items)

    async def scenario(batcher, worker):
        return await asyncio.gather(*(batcher([i] * 4) for i in range(5)))

    assert run(scenario, Overlapping()) == [[i * i] * 4 for i in range(5)]


def test_a_batch_has_one_key():
    async def scenario(batcher, worker):
        worker.free.clear()
        tasks = [asyncio.create_task(batcher([i], i % 2)) for i in range(9)]
        await asyncio.sleep(0.02)
        worker.free.set()
        results = await asyncio.gather(*tasks)
        assert results == [[i * i] for i in range(9)]
        return worker.batches

    batches = run(scenario)
    assert all(item % 2 == key for key, items in batches for item in items)
    # What has another key keeps its place.
    assert batches == [(0, [0, 2, 4, 6]), (1, [1, 3, 5, 7]), (0, [8])]


@pytest.mark.parametrize(("bad", "kind"), [("bad", ValueError), ("worse", ZeroDivisionError)])
def test_a_failure_is_that_of_one_caller(bad, kind):
    async def scenario(batcher, worker):
        worker.free.clear()
        values = [[1], [2, bad], [3]]
        tasks = [asyncio.create_task(batcher(own)) for own in values]
        await asyncio.sleep(0.02)
        worker.free.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert await batcher([5]) == [25]  # The worker lives on.
        return results

    first, failure, third = run(scenario)
    assert (first, third) == ([1], [9])
    assert isinstance(failure, kind)


def test_a_full_queue_is_refused_and_says_when_to_come_back():
    async def scenario(batcher, worker):
        assert await batcher([1]) == [1]
        worker.free.clear()
        tasks = []
        for i in range(3):
            tasks.append(asyncio.create_task(batcher([i] * 3)))
            await asyncio.sleep(0)
            await begun(worker)
        # 3 are worked on, 6 wait.
        with pytest.raises(QueueFullError) as refused:
            await batcher([1, 2])
        tasks.append(asyncio.create_task(batcher([7])))  # There is room for one.
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError):
            await batcher([8])
        worker.free.set()
        assert (await asyncio.gather(*tasks))[-1] == [49]
        return refused.value.seconds

    assert run(scenario, max_waiting=7) >= 0


def test_a_full_queue_has_no_room_for_those_who_went_away():
    here, asked = {3}, []

    async def scenario(batcher, worker):
        def gone(number):
            async def is_gone():
                asked.append(number)
                return number not in here

            return is_gone

        worker.free.clear()
        tasks = [asyncio.create_task(batcher([0]))]
        await begun(worker)
        tasks += [asyncio.create_task(batcher([i], gone=gone(i))) for i in (1, 2, 3)]
        await asyncio.sleep(0.05)  # Callers are asked after 20 ms.
        tasks.append(asyncio.create_task(batcher([4, 5])))
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError):  # All were asked just now.
            await batcher([6])
        worker.free.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    first, *absent, present, later = run(scenario, max_waiting=3)
    assert (first, present, later) == ([0], [9], [16, 25])
    assert [type(error) for error in absent] == [GoneError] * 2
    assert asked.count(1) == asked.count(2) == 1


def test_a_deadline_and_a_cancelled_caller_leave_the_others_alone():
    async def scenario(batcher, worker):
        worker.free.clear()
        running = asyncio.create_task(batcher([1]))
        await begun(worker)
        cancelled = asyncio.create_task(batcher([2]))
        late = asyncio.create_task(batcher([3], timeout=0.02))
        other = asyncio.create_task(batcher([4]))
        await asyncio.sleep(0.05)
        cancelled.cancel()
        with pytest.raises(DeadlineError):
            await late
        worker.free.set()
        assert await running == [1]
        assert await other == [16]
        return worker.batches

    assert run(scenario) == [(None, [1]), (None, [4])]


def test_what_nobody_waits_for_is_not_computed():
    asked = []

    async def gone():
        asked.append(True)
        return True

    async def here():
        return False

    async def scenario(batcher, worker):
        worker.free.clear()
        tasks = [asyncio.create_task(batcher([1]))]
        await begun(worker)
        tasks.append(asyncio.create_task(batcher([2, 3], gone=gone)))
        tasks.append(asyncio.create_task(batcher([4], gone=here)))
        await asyncio.sleep(0.05)
        worker.free.set()
        first, absent, present = await asyncio.gather(*tasks, return_exceptions=True)
        assert (first, present) == ([1], [16])
        assert isinstance(absent, GoneError)
        return worker.batches

    assert run(scenario) == [(None, [1]), (None, [4])]
    assert len(asked) == 1


def test_stopping_answers_what_is_there():
    async def scenario(batcher, worker):
        tasks = [asyncio.create_task(batcher([i])) for i in range(10)]
        await asyncio.sleep(0)
        await batcher.stop()
        assert [await task for task in tasks] == [[i * i] for i in range(10)]
        with pytest.raises(StoppedError):
            await batcher([1])

    run(scenario, wait=60.0)
