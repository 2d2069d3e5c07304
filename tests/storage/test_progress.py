"""Progress in logs and on terminals, with a clock that the test sets."""

import itertools
import os
import pty
import re
import subprocess
import sys

import pytest

from elq_jax.storage import progress as module
from elq_jax.storage.progress import progress


@pytest.fixture
def clock(monkeypatch):
    """A clock of one entry, seconds."""
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def run(clock, seconds_per_call, counts, total):
    with progress("encoding", total, "entities") as advance:
        for count in counts:
            advance(count)
            clock[0] += seconds_per_call


def test_lines_say_what_is_done_the_rate_and_the_time_left(clock, capsys):
    run(clock, 4, [500, *[100] * 15], total=2000)  # 500 found done, then 25 a second
    output, errors = capsys.readouterr()
    assert output == ""
    lines = errors.splitlines()
    assert lines[0] == "encoding: 800 of 2,000 entities, 25/s, 0:48 left"
    assert lines[-1] == "encoding: 2,000 of 2,000 entities, 25/s, 0:00 left"


def test_shares_of_one_unit_have_a_rate_and_a_time_left(clock, capsys):
    run(clock, 4, [0.1] * 10, total=1)  # a tenth every four seconds
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "encoding: 0.400 of 1 entities, 0.025/s, 0:24 left"
    assert lines[-1] == "encoding: 1 of 1 entities, 0.025/s, 0:00 left"


def test_what_is_soon_done_says_nothing(clock, capsys):
    run(clock, 1, [100] * 9, total=900)
    assert capsys.readouterr() == ("", "")


def test_long_work_writes_ever_fewer_lines(clock, capsys):
    run(clock, 1, [1] * 36_000, total=36_000)
    done = [int(line.split()[1].replace(",", "")) for line in capsys.readouterr().err.splitlines()]
    assert len(done) < 200
    steps = [later - earlier for earlier, later in itertools.pairwise(done[:-1])]
    assert min(steps) >= 10
    assert steps == sorted(steps)
    assert done[-1] == 36_000


def test_a_bar_on_a_terminal():
    code = (
        "from elq_jax.storage.progress import progress\n"
        "with progress('encoding', 200, 'entities') as advance:\n"
        "    for count in (50, 75, 75): advance(count)\n"
    )
    ours, theirs = pty.openpty()
    subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=theirs, check=True
    )
    shown = os.read(ours, 1 << 16).decode()
    assert re.search(r"encoding .*200/200.* entities/s", shown), shown
