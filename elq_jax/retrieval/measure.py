"""Measures the recall of an index against exact search, and its speed."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from elq_jax.core.errors import ElqError
from elq_jax.entities.embeddings import Embeddings
from elq_jax.retrieval.base import INDEXES, REPORT, Index, check_queries, is_saved
from elq_jax.retrieval.exact import ExactIndex
from elq_jax.storage.files import check_not_a_pointer, check_replaceable, write_json

T = TypeVar("T")
CUTS = (1, 10, 100)


def compare(
    embeddings: Embeddings,
    queries: np.ndarray,
    index: str = "scann",
    settings: Any = None,
    folder: str | os.PathLike[str] | None = None,
    *,
    seconds: float = 3.0,
    about: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Builds an index and compares it with exact search, in recall, speed, time and size.

    Progress is printed on stderr.

    Args:
      embeddings: [E, D] entity vectors.
      queries: [Q, D] float, query vectors to measure with.
      index: name in `INDEXES`; "exact" builds nothing.
      settings: settings of the index; None: all defaults.
      folder: path that an index with files is saved to and opened from; report.json is written
        beside it. None: the index is measured in memory.
      seconds: number of seconds that each speed is measured.
      about: further entries of the report, such as where the queries are from.

    Returns:
      a JSON-able dict: rows, width, dtype, and for "exact" and the index's name a dict of
      open_seconds, recall by k, queries_per_second by queries at a time; of an index that was built
      also settings and build_seconds, of one that was saved bytes.

    Raises:
      ElqError: no such index, a setting or query out of range, files that cannot be written.
    """
    queries = check_queries(queries, 1, embeddings.shape)
    if not len(queries):
        raise ElqError("queries: found none, expected at least one to measure with")
    kind = INDEXES.get(index)
    exact, open_seconds = _timed(lambda: ExactIndex(embeddings))
    report: dict[str, Any] = {
        "rows": embeddings.shape[0],
        "width": embeddings.shape[1],
        "dtype": embeddings.dtype,
        **(about or {}),
        "exact": {"open_seconds": open_seconds},
    }
    indexes: dict[str, Index] = {"exact": exact}
    if kind is not ExactIndex:
        indexes[index], report[index] = _build(kind, embeddings, settings, folder)
    _say(f"searching for the nearest entities of {len(queries):,} queries ...")
    _, nearest = exact.search(queries, min(max(CUTS), len(embeddings)))
    for name, searched in indexes.items():
        report[name] |= _measure(name, searched, queries, nearest, seconds)
    if folder is not None and kind.has_files:
        write_json(pathlib.Path(folder) / REPORT, report)
    return report


def _build(
    kind: type[Index],
    embeddings: Embeddings,
    settings: Any,
    folder: str | os.PathLike[str] | None,
) -> tuple[Index, dict[str, Any]]:
    """Builds an index, saves it and opens it again; returns it with times and sizes."""
    if folder is not None and kind.has_files:  # before hours of work
        check_replaceable(pathlib.Path(os.path.realpath(folder)), "an index", is_saved)
    _say(f"building the index over {len(embeddings):,} entities ...")
    index, build_seconds = _timed(lambda: kind.build(embeddings, settings))
    facts = {"settings": dataclasses.asdict(index.settings), "build_seconds": build_seconds}
    if folder is None or not kind.has_files:
        return index, facts
    index.save(folder)
    index, facts["open_seconds"] = _timed(lambda: kind.open(folder, embeddings))
    paths = pathlib.Path(folder).rglob("*")
    facts["bytes"] = sum(path.stat().st_size for path in paths if path.is_file())
    return index, facts


def _measure(
    name: str, index: Index, queries: np.ndarray, nearest: np.ndarray, seconds: float
) -> dict[str, Any]:
    rows = index.shape[0]
    _say(f"measuring the recall of {name} ...")
    # k as it is used: an index may look harder for more neighbours.
    recalls = {str(k): recall(index.search(queries, k)[1], nearest, k) for k in CUTS if k <= rows}
    speeds = {}
    for size in sorted({1, min(64, len(queries))}):
        _say(f"measuring the speed of {name}, {how_many(size)} ...")
        speeds[str(size)] = queries_per_second(index, queries, size, min(10, rows), seconds)
    return {"recall": recalls, "queries_per_second": speeds}


def how_many(size: int) -> str:
    """Returns words for the number of queries in a search."""
    return "one at a time" if size == 1 else f"{size} at a time"


def read_queries(path: str | os.PathLike[str], embeddings: Embeddings) -> np.ndarray:
    """Reads query vectors.

    Args:
      path: path of a .npy file, float [Q, D].
      embeddings: [E, D] entity vectors that will be searched.

    Returns:
      [Q, D] float32, Q > 0.

    Raises:
      ElqError: the file is not such an array, has another width or no query, or holds NaN or
        infinity.
    """
    if not os.path.isfile(path):
        raise ElqError(f"{path}: no such file; give a .npy file, float [Q, D]")
    check_not_a_pointer(path)
    try:
        queries = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ElqError(f"{path}: not a .npy file ({error})") from error
    if getattr(queries, "dtype", np.dtype(object)).kind not in "fiu":
        found = getattr(queries, "dtype", "several arrays")
        raise ElqError(f"{path}: found {found}, expected one array of real numbers [Q, D]")
    with np.errstate(over="ignore"):  # Infinity is found below.
        queries = queries.astype(np.float32)
    try:
        queries = check_queries(queries, 1, embeddings.shape)
    except ElqError as error:
        raise ElqError(f"{path}: {error}") from error
    if not len(queries):
        raise ElqError(f"{path}: holds no query; give an array [Q, D] with at least one row")
    return queries


def sample(queries: np.ndarray, origin: str, count: int, seed: int) -> tuple[np.ndarray, str]:
    """Draws queries at random without repeats.

    Args:
      queries: [Q, D] query vectors.
      origin: words for where the queries are from.
      count: number of queries to draw.
      seed: seed of the choice.

    Returns:
      [min(Q, count), D], and words for this sample.
    """
    drawn = queries[np.random.default_rng(seed).permutation(len(queries))[:count]]
    return drawn, f"{len(drawn):,} of {len(queries):,} {origin}"


def perturbed_rows(
    embeddings: Embeddings, count: int, noise: float, seed: int
) -> tuple[np.ndarray, str]:
    """Draws entity vectors and adds noise, in place of the vectors of real mentions.

    Args:
      embeddings: [E, D] entity vectors.
      count: Q, number of vectors to draw.
      noise: length of the normal noise added to a vector, relative to the vector's own.
      seed: seed of the choice and of the noise.

    Returns:
      [Q, D] float32, and words for this sample.
    """
    generator = np.random.default_rng(seed)
    vectors = embeddings.rows(generator.integers(0, len(embeddings), count))
    added = generator.standard_normal(vectors.shape, dtype=np.float32)
    lengths = np.linalg.norm(vectors, axis=1) / np.linalg.norm(added, axis=1)
    return vectors + added * (noise * lengths)[:, None], (
        f"{count:,} entity vectors with noise {noise:g} times as long added (not vectors of "
        f"mentions), seed {seed}"
    )


def recall(found: np.ndarray, exact: np.ndarray, k: int) -> float:
    """Computes the share of the exact k nearest rows that are among the first k found.

    Args:
      found: [Q, >= k] int, rows of an approximate search.
      exact: [Q, >= k] int, rows of exact search.
      k: number of rows that count.
    """
    pairs = zip(found[:, :k], exact[:, :k], strict=True)
    return float(np.mean([len(np.intersect1d(*pair)) / k for pair in pairs]))


def queries_per_second(
    index: Index, queries: np.ndarray, batch_size: int, k: int = 10, seconds: float = 3.0
) -> float:
    """Measures the speed of search in queries per second; the first search is not counted.

    Args:
      index: index to measure.
      queries: [Q, D], Q >= `batch_size`; taken in order, again and again.
      batch_size: number of queries per search.
      k: number of entities per query.
      seconds: number of seconds to measure.
    """
    batches = [
        queries[start : start + batch_size]
        for start in range(0, len(queries) - batch_size + 1, batch_size)
    ]
    index.search(batches[0], k)
    count, started = 0, time.perf_counter()
    while count == 0 or time.perf_counter() - started < seconds:
        index.search(batches[count % len(batches)], k)
        count += 1
    return count * batch_size / (time.perf_counter() - started)


def _timed(function: Callable[[], T]) -> tuple[T, float]:
    started = time.perf_counter()
    result = function()
    return result, time.perf_counter() - started


def _say(message: str) -> None:
    print(message, file=sys.stderr)
