"""Stages that work side by side: order, overlap, errors, and stopping."""

import itertools
import threading

import pytest

from elq_jax.linking.pipeline import overlapped


def double(item):
    return 2 * item


def text(item):
    return f"<{item}>"


@pytest.mark.parametrize("ahead", [0, 1, 2, 9])
def test_results_are_in_the_order_of_the_items(ahead):
    expected = [(item, f"<{2 * item}>") for item in range(7)]
    assert list(overlapped(range(7), double, text, ahead=ahead)) == expected
    assert list(overlapped([], double, text, ahead=ahead)) == []


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_items_are_read_only_so_far_ahead(ahead):
    read = []
    endless = (read.append(item) or item for item in itertools.count())
    results = overlapped(endless, double, ahead=ahead)
    for number in range(4):
        assert next(results) == (number, 2 * number)
        assert len(read) == number + 1 + ahead
    results.close()
    assert len(read) == 4 + ahead


def test_stages_work_on_different_items_at_the_same_time():
    """Item 0 leaves the second stage only when item 1 is in the first."""
    both = threading.Barrier(2, timeout=30)
    threads = [set(), set()]

    def first(item):
        threads[0].add(threading.get_ident())
        if item == 1:
            both.wait()
        return item

    def second(item):
        threads[1].add(threading.get_ident())
        if item == 0:
            both.wait()
        return item

    assert [item for item, _ in overlapped(range(4), first, second)] == [0, 1, 2, 3]
    assert [len(own) for own in threads] == [1, 1]
    assert len({threading.get_ident()} | threads[0] | threads[1]) == 3


@pytest.mark.parametrize("ahead", [0, 2])
@pytest.mark.parametrize("place", ["items", "first", "second"])
def test_an_error_comes_after_the_results_before_it(place, ahead):
    def failing(name):
        def stage(item):
            if name == place and item == 3:
                raise ValueError(f"{name}: {item}")
            return item

        return stage

    items = map(failing("items"), range(9))
    results = overlapped(items, failing("first"), failing("second"), ahead=ahead)
    assert [next(results) for _ in range(3)] == [(0, 0), (1, 1), (2, 2)]
    with pytest.raises(ValueError, match=f"{place}: 3"):
        next(results)
    assert list(results) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, GeneratorExit])
def test_nothing_is_begun_after_the_caller_stops(error):
    done, may_go_on = [], threading.Event()

    def stage(item):
        if item == 1:
            may_go_on.wait(30)
        done.append(item)
        return item

    results = overlapped(range(99), stage, ahead=5)
    assert next(results) == (0, 0)
    threading.Timer(0.2, may_go_on.set).start()
    with pytest.raises(error):
        results.throw(error)
    assert done in ([0], [0, 1])
    assert not any("ThreadPool" in thread.name for thread in threading.enumerate())
