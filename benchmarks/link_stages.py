"""Measures where the time of linking goes: one line per stage, with and without candidate scoring.

    python -m benchmarks.link_stages --linker my_linker \\
        --questions data/questions/webqsp/test.jsonl

Both ways link the same questions in turn, `--rounds` times after a first pass that compiles. A
stage is timed without the stages that it calls, and medians over the rounds are printed. Devices
work in the background: "encoder" is the time that the program waits for them. "cores" is the time
that all cores work, which other load on the machine changes less.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import statistics
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

from absl import flags

from benchmarks import options
from elq_jax.cli.run import run
from elq_jax.core import devices, machine
from elq_jax.core.errors import ElqError
from elq_jax.linking import linker as linker_module
from elq_jax.linking import rows as rows_module
from elq_jax.linking.linker import EntityLinker
from elq_jax.linking.scoring import Search, chunks
from elq_jax.questions.rows import Row, open_rows

_INDEX = flags.DEFINE_string("index", "auto", "Name of the index, or auto.")


class Stages:
    """Adds up the seconds of stages, each without the stages that it calls."""

    def __init__(self):
        self.seconds: dict[str, float] = collections.defaultdict(float)
        self._running: list[str] = []
        self._since = time.perf_counter()

    def switch(self) -> None:
        """Counts the time since the last switch for the stage that runs."""
        now = time.perf_counter()
        if self._running:
            self.seconds[self._running[-1]] += now - self._since
        self._since = now

    @contextlib.contextmanager
    def running(self, stage: str) -> Iterator[None]:
        """Counts the time of a block for a stage."""
        self.switch()
        self._running.append(stage)
        try:
            yield
        finally:
            self.switch()
            self._running.pop()

    def timed(self, owner: Any, name: str, stage: str) -> Any:
        """Returns a patch with which the time of a function is counted for a stage."""
        function = getattr(owner, name)

        @functools.wraps(function)
        def measured(*arguments: Any, **options: Any) -> Any:
            with self.running(stage):
                return function(*arguments, **options)

        return mock.patch.object(owner, name, measured)


def patches(stages: Stages, linker: EntityLinker) -> Iterator[Any]:
    """Yields patches that time the stages of linking."""
    scorer, names = linker.candidate_scorer, linker.candidate_scorer.names
    yield stages.timed(linker.tokenizer, "encode_questions", "tokenise")
    yield stages.timed(Search, "of", "roles of tokens")
    yield stages.timed(type(linker.scorer), "_dispatch", "pad and dispatch")
    yield stages.timed(devices, "merge", "encoder")
    yield stages.timed(type(linker.index), "search", "search")
    yield stages.timed(names, "find", "names: find")
    yield stages.timed(scorer, "candidates_of", "candidates: features")
    yield stages.timed(scorer, "_best", "candidates: choose")
    yield stages.timed(type(linker.link_scorer), "__call__", "probabilities")
    yield stages.timed(type(linker), "decode", "decode")
    yield stages.timed(linker_module, "make_links", "make links")
    yield stages.timed(rows_module, "to_line", "lines")


def link(linker: EntityLinker, rows: list[Row], batch_size: int, stages: Stages) -> None:
    """Links rows to lines of JSON as `link` does, and counts the time of the stages."""
    with contextlib.ExitStack() as stack, stages.running("other"):
        for patch in patches(stages, linker):
            stack.enter_context(patch)
        for chunk in chunks(rows, batch_size, lambda row: len(row.text)):
            for linked in rows_module.link_rows(linker, chunk, batch_size):
                rows_module.to_line(linked)


def main(arguments: list[str]) -> None:
    """Prints the stages."""
    del arguments
    if not options.LINKER.value or not options.QUESTIONS.value:
        raise ElqError("--linker, --questions: both are needed")
    linker = EntityLinker.from_pretrained(options.LINKER.value, index=_INDEX.value)
    if linker.candidate_scorer is None or linker.link_scorer is None:
        raise ElqError(f"{options.LINKER.value}: has no candidates.json or no confidence.json")
    ways = {"scored": linker, "as searched": linker.with_settings(candidate_scoring=False)}
    with open_rows(options.QUESTIONS.value, with_mentions=False) as (rows, _):
        rows = list(rows)
    for way in ways.values():
        link(way, rows, 64, Stages())
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for _ in range(options.ROUNDS.value):
        for name, way in ways.items():
            stages, before = Stages(), time.process_time()
            link(way, rows, 64, stages)
            totals = {"all": sum(stages.seconds.values()), "cores": time.process_time() - before}
            rounds[name].append(stages.seconds | totals)
    print(
        f"{machine.describe_machine()['cpu']}; index {linker.index.name}; {len(rows):,} questions"
    )
    print(f"{'ms per question':24}", *(f"{name:>12}" for name in ways))
    for stage in rounds["scored"][0]:
        medians = [
            statistics.median(seconds.get(stage, 0) for seconds in measured)
            for measured in rounds.values()
        ]
        print(f"{stage:24}", *(f"{1000 * median / len(rows):12.4f}" for median in medians))
    totals = [statistics.median(s["all"] for s in measured) for measured in rounds.values()]
    print("questions per second    ", *(f"{len(rows) / total:12.1f}" for total in totals))
    for key, name in (("all", "time"), ("cores", "processor time")):
        pairs = zip(rounds["scored"], rounds["as searched"], strict=True)
        ratio = statistics.median(searched[key] / scored[key] for scored, searched in pairs)
        print(f"speed with scoring by {name}: {100 * ratio:.1f}% of that without")


if __name__ == "__main__":
    run(main)
