"""Adds entities one by one, while other processes link without pause, and looks for errors.

    python -m benchmarks.catalogue_readers --linker runs/demo/linker

A process adds entities to a copy of the linker, each by a change of its own. Two others have the
copy open, and in turns take over the changes and link questions about the newest entities. They
count

    wrong      links and candidates whose title is not that of their id
    missing    entities that were acknowledged before a reader took over the changes, and that it
               does not have

Prints these, the time of a change, and the memory of all three without mapped files, as the
catalogue grows. At the end the readers, a linker that is opened anew, and one that is compacted
must link questions alike. Exits with 1 if anything is wrong.
"""

from __future__ import annotations

import multiprocessing
import os
import pathlib
import re
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags

from benchmarks.options import LINKER
from elq_jax.cli.run import run, start_jax

_ENTITIES = flags.DEFINE_integer(
    "one_by_one", 10_000, "Number of entities that are added.", 20, 14**4
)
_READERS = flags.DEFINE_integer("readers", 2, "Number of processes that link.", 1)
_LINES = 20  # printed, and points of the slope
_QUESTIONS = 64  # that are compared at the end
_LETTERS = "bdfgklmnprstvz"

Known = list[tuple[int, int, str, float]]  # start, end, id and score of links


def main(arguments: list[str]) -> int:
    """Starts readers, adds entities, and compares what all of them link at the end."""
    del arguments
    start_jax()
    from elq_jax.core import machine
    from elq_jax.linking.changes import CatalogueEditor
    from elq_jax.storage.files import link_or_copy

    print(machine.describe_machine()["cpu"])
    spawn = multiprocessing.get_context("spawn")
    acknowledged, done = spawn.Value("q", -1), spawn.Event()
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary) / "linker"
        link_or_copy(LINKER.value, folder)
        pipes, readers = [], []
        for _ in range(_READERS.value):
            ours, theirs = spawn.Pipe()
            arguments = folder, acknowledged, done, theirs
            process = spawn.Process(target=_read, args=arguments, daemon=True)
            process.start()
            theirs.close()
            pipes.append(ours)
            readers.append(process)
        for pipe in pipes:
            pipe.recv()  # It is open.
        _add(CatalogueEditor(folder), acknowledged, [os.getpid(), *(r.pid for r in readers)])
        done.set()
        reports = [pipe.recv() for pipe in pipes]
        for process in readers:
            process.join()
        return _compared(folder, reports)


def _title(number: int) -> str:
    """Returns a title for each number below 14**4: 0 -> "Babobibu Zorblax"."""
    places = [number // len(_LETTERS) ** power % len(_LETTERS) for power in range(4)]
    first, second, third, fourth = (_LETTERS[place] for place in places)
    return f"{first.upper()}a{second}o{third}i{fourth}u Zorblax"


def _question(number: int) -> str:
    return f"who directed {_title(number)}?"


def _add(editor: Any, acknowledged: Any, processes: Sequence[int]) -> None:
    """Adds entities one by one, and prints what it costs."""
    count, points = _ENTITIES.value, []
    every = count // _LINES
    print(f"{count:,} entities are added to {editor.segments().catalogue.num_entities:,}")
    clock, cpu = time.perf_counter(), time.process_time()
    for number in range(count):
        text = f"{_title(number)} is a film about robots."
        editor.add([{"title": _title(number), "text": text, "id": f"new-{number}"}])
        acknowledged.value = number
        if (number + 1) % every:
            continue
        memory = [_resident(process) for process in processes]
        points.append((number + 1, *memory))
        elapsed = time.perf_counter() - clock, time.process_time() - cpu
        print(
            f"  {number + 1:6,}: {elapsed[0] / every * 1e3:4.0f} ms each "
            f"({elapsed[1] / every * 1e3:.0f} ms of processor time), "
            f"{len(editor.segments().parts)} segments; memory of the writer and the readers: "
            f"{', '.join(f'{each:.0f}' for each in memory)} MiB",
            flush=True,
        )
        clock, cpu = time.perf_counter(), time.process_time()
    entities, *memory = np.array(points[len(points) // 4 :]).T
    slopes = [np.polyfit(entities, each, 1)[0] * 1024 for each in memory]
    vector = 4 * editor.segments().embeddings.shape[1] / 1024
    print(
        "  growth after the first quarter: "
        f"{', '.join(f'{slope:.2f}' for slope in slopes)} KiB per entity, whose vector is "
        f"{vector:.2f} KiB"
    )


def _resident(process: int) -> float:
    """Returns the memory of a process without mapped files, in MiB."""
    text = pathlib.Path(f"/proc/{process}/status").read_text()
    return int(re.search(r"RssAnon:\s+(\d+)", text)[1]) / 1024


def _read(folder: pathlib.Path, acknowledged: Any, done: Any, pipe: Any) -> None:
    """Links questions until the writer is done; sends counts, and links of the last catalogue."""
    from elq_jax import EntityLinker

    linker = EntityLinker.from_pretrained(folder)
    rows = range(len(linker.catalogue))
    titles = {each.id: each.title for each in linker.catalogue.entities(rows)}
    linker([_question(0)])
    pipe.send("open")
    questions = wrong = missing = right = 0
    while not done.is_set():
        newest = acknowledged.value
        linker.refresh()
        links = linker(_question(max(newest, 0)))
        questions += 1
        right += any(link.id == f"new-{newest}" for link in links)
        missing += linker.catalogue.num_entities < len(titles) + newest + 1
        for entity in (each for link in links for each in (link, *link.candidates)):
            number = re.fullmatch(r"new-(\d+)", entity.id)
            wrong += entity.title != (_title(int(number[1])) if number else titles[entity.id])
    linker.refresh()
    pipe.send((questions, wrong, missing, right, _links(linker, acknowledged.value + 1)))


def _links(linker: Any, count: int) -> list[Known]:
    """Links questions about some of the new entities, one by one, as the readers do."""
    numbers = np.linspace(0, count - 1, _QUESTIONS).astype(int).tolist()
    return [
        [(link.start, link.end, link.id, link.score) for link in linker(_question(number))]
        for number in numbers
    ]


def _compared(folder: pathlib.Path, reports: Sequence[Any]) -> int:
    """Prints the readers' counts; returns 1 if one is not 0, or if links differ."""
    from elq_jax import EntityLinker

    count, linker = _ENTITIES.value, EntityLinker.from_pretrained(folder)
    expected = _links(linker, count)
    linker.compact()
    everything = [links for *_, links in reports] + [_links(linker, count)]
    are_alike = [_are_alike(links, expected) for links in everything]
    for questions, wrong, missing, right, _ in reports:
        print(
            f"  reader: {questions:,} questions, {wrong} wrong, {missing} missing; "
            f"{right / max(questions, 1):.0%} linked to the entity they are about"
        )
    print(f"  as a linker that is opened anew: {are_alike[:-1]}, compacted: {are_alike[-1]}")
    return int(any(wrong or missing for _, wrong, missing, *_ in reports) or not all(are_alike))


def _are_alike(links: Sequence[Known], others: Sequence[Known]) -> bool:
    """Returns whether links are the same but for the last digits of their scores."""
    pairs = list(zip(links, others, strict=True))
    return all(
        [link[:3] for link in own] == [link[:3] for link in other]
        and np.allclose([link[3] for link in own], [link[3] for link in other], atol=1e-3)
        for own, other in pairs
    )


if __name__ == "__main__":
    run(main)
