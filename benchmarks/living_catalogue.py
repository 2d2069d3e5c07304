"""Measures what a change of a catalogue costs, for docs/living-catalogue.md.

    python -m benchmarks.living_catalogue --linker runs/refit/linker

changes copies of the linker, never itself, and prints tables:

    add      seconds to add 16 entities, until the next question is linked to one of them, in this
             process and in another linker that has the directory open
    search   searches with rows in small segments and with deleted rows, in alternation with the
             same search over one segment: time relative to it, and recall. Exact search is compared
             with one over all living rows; an index that is saved, with itself over the first
             segment as it is
"""

from __future__ import annotations

import pathlib
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks.options import LINKER, ONLY, ROUNDS, SMALL
from elq_jax.cli.run import run, start_jax

_NEW, _K = 16, 10
_NEAREST = 40.0  # best rows of some queries that are deleted, so that most results are
_QUERIES = (1, 64)


def main(arguments: list[str]) -> None:
    """Runs the measurements whose names --only matches."""
    del arguments
    start_jax()
    from elq_jax.core import machine
    from elq_jax.storage.files import link_or_copy

    print(machine.describe_machine()["cpu"])
    for name, measure in _MEASURES.items():
        if not re.search(ONLY.value, name):
            continue
        with tempfile.TemporaryDirectory() as temporary:
            folder = pathlib.Path(temporary) / "linker"
            link_or_copy(LINKER.value, folder)
            for line in measure(folder):
                print(line, flush=True)


def _timed(function: Callable[[], Any]) -> tuple[float, float, Any]:
    """Returns seconds and processor seconds that a call takes, and its result."""
    started, cpu = time.perf_counter(), time.process_time()
    result = function()
    return time.perf_counter() - started, time.process_time() - cpu, result


def _add(folder: pathlib.Path) -> Iterator[str]:
    from elq_jax import EntityLinker

    linker, other = EntityLinker.from_pretrained(folder), EntityLinker.from_pretrained(folder)
    linker(["who directed zorblax nine?"]), other(["who directed zorblax nine?"])
    yield f"add: {_NEW} entities to {len(linker.catalogue):,}"
    for number in range(ROUNDS.value):
        title = f"Zorblax {chr(ord('a') + number) * 3}"
        entities = [
            {"title": f"{title} {i}", "text": f"Film number {i} about robots on a planet. " * 3}
            for i in range(_NEW)
        ]
        seconds, cpu, _ = _timed(lambda new=entities: linker.add_entities(new))
        asked = f"who directed {title} 3?"
        question, _, links = _timed(lambda text=asked: linker(text))
        refresh, _, _ = _timed(other.refresh)
        right = [f"{title} 3" in [link.title for link in found] for found in (links, other(asked))]
        yield (
            f"  call {number + 1}: {seconds:.3f} s ({cpu:.3f} s of processor time), next question "
            f"{question:.3f} s, refresh of another linker {refresh:.3f} s; linked right: {right}"
        )


def _search(folder: pathlib.Path) -> Iterator[str]:
    from elq_jax.entities.embeddings import Shard
    from elq_jax.entities.segments import open_segments
    from elq_jax.retrieval import open_index
    from elq_jax.retrieval.exact import ExactIndex
    from elq_jax.retrieval.measure import perturbed_rows, recall
    from elq_jax.retrieval.segments import SegmentedIndex
    from elq_jax.storage import layout

    embeddings = open_segments(folder).embeddings
    queries, about = perturbed_rows(embeddings, 4 * max(_QUERIES), 0.7, 0)
    first, rows = open_index(folder / layout.INDEX, embeddings), len(embeddings)
    whole = None if first.name == "exact" else first
    yield f"search: {rows:,} rows in the first segment ({first.name}), k = {_K}; {about}"
    random = np.random.default_rng(0)
    for size, share in (
        *((0, 0), (10, 0), (1000, 0), (50_000, 0)),
        *((0, 0.1), (10, 0.1), (1000, 0.1), (50_000, 0.1), (0, _NEAREST)),
    ):
        if SMALL.value:
            size = min(size, 1000)
        new = embeddings.rows(random.integers(0, rows, size)) + np.float32(0.01)
        new = Shard(0, new).astype(embeddings.dtype).float32()
        deleted = random.random(rows + size) < (share if share < 1 else 0)
        if share >= 1:
            deleted[np.unique(first.search(queries[:16], int(share))[1])] = True
        living = np.flatnonzero(~deleted)
        vectors = np.concatenate([embeddings[:], new])[living]
        compacted = ExactIndex(_written(folder / f"{size}-{share}", vectors, embeddings))
        del vectors
        index = SegmentedIndex(first, _pieces(new), deleted if share else None)
        found, exact = index.search(queries, _K)[1], living[compacted.search(queries, _K)[1]]
        are_whole = [len({*row}) == _K and not deleted[row].any() for row in found]
        ratios = [_ratio(index, whole or compacted, queries[:count]) for count in _QUERIES]
        removed = f"{share:.0%}" if share < 1 else f"the best {share:.0f} of 16 queries"
        yield (
            f"  {size:6,} rows in {len(_pieces(new))} small segments, {removed} deleted: "
            + ", ".join(
                f"{count} queries {least * 1e3:.1f} ms, {clock:.2f} of one segment "
                f"({cpu:.2f} in processor time)"
                for count, (least, clock, cpu) in zip(_QUERIES, ratios, strict=True)
            )
            + f"; {_K} living rows for {np.mean(are_whole):.0%} of the queries"
            + f"; recall {recall(found, exact, _K):.4f}"
        )


def _written(folder: pathlib.Path, vectors: np.ndarray, like: Any) -> Any:
    """Writes vectors in the form of other embeddings, and opens them."""
    from elq_jax.entities.embeddings import EmbeddingsWriter

    writer = EmbeddingsWriter(folder, *vectors.shape, like.dtype, like.shard_rows)
    for shard in range(writer.num_shards):
        writer.write_shard(shard, vectors[slice(*writer.shard_range(shard))])
    return writer.finish()


def _pieces(vectors: np.ndarray) -> list[np.ndarray]:
    """Cuts vectors into segments as many small changes leave them: each twice the next one."""
    pieces = []
    while len(vectors):
        size = 1 << (len(vectors).bit_length() - 1)
        pieces.append(vectors[:size])
        vectors = vectors[size:]
    return pieces


def _ratio(index: Any, other: Any, queries: np.ndarray) -> tuple[float, float, float]:
    """Searches with two indexes in alternation.

    Returns:
      the fewest seconds of a search by the first, to which other work on the machine only adds, and
      their ratios to those of the second: of the fewest seconds, and of all processor time.
    """
    taken = np.array(
        [
            [_timed(lambda each=each: each.search(queries, _K))[:2] for each in (index, other)]
            for _ in range(3 + 8 * ROUNDS.value)
        ]
    )[3:]
    (least, least_of_other), (cpu, cpu_of_other) = taken[:, :, 0].min(0), taken[:, :, 1].sum(0)
    return least, least / least_of_other, cpu / cpu_of_other


_MEASURES = {"add": _add, "search": _search}

if __name__ == "__main__":
    run(main)
