"""Approximate search on the host with ScaNN, saved and reopened.

| kind        | how                                                     | chosen for     |
| ----------- | ------------------------------------------------------- | -------------- |
| brute_force | all rows                                                | E < 20,000     |
| ah          | all rows by 4-bit product codes, the best ones again    | E <= 100,000   |
|             | by their vectors                                        |                |
| tree_ah     | the same within the leaves nearest to the query         | larger         |

ScaNN holds four copies of what it builds an index over, as float32. So a large table is built in
parts of consecutive rows, one after the other; a search asks all of them.

Guo et al., "Accelerating large-scale inference with anisotropic vector quantization", ICML 2020.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import math
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from elq_jax.core.errors import DiskFullError, ElqError
from elq_jax.entities.embeddings import DTYPES, Embeddings, Shard, checked_shards
from elq_jax.retrieval.exact import check_queries
from elq_jax.storage.files import write_json
from elq_jax.storage.progress import progress

KINDS = ("auto", "brute_force", "ah", "tree_ah")
FORMAT = "elq_jax ScaNN index, version 1"
_PART_BYTES = 1 << 30  # of float32 vectors


@dataclasses.dataclass(frozen=True)
class ScannSettings:
    """How a part of a ScaNN index is built. Brute force uses none of it, `ah` nothing of the tree.

    Attributes:
      kind: one of `KINDS`; "auto" chooses by the number of rows.
      num_leaves: of the tree; None: 2 sqrt(rows of the part).
      leaves_to_search: more is slower and finds more; None: a quarter of the leaves.
      training_sample_size: rows that the tree and the product codes are trained on.
      dimensions_per_block: of a product code of 4 bits; fewer is slower and finds more.
      anisotropic_threshold: weighs errors of the codes along the vector more than across it, as
        the inner product does; 0.2 suits unit vectors. NaN: off.
      reorder: rows taken from the product codes (at least 2k) and scored by their vectors.
      reorder_dtype: "float32", "bfloat16" or "int8" vectors for that; the smaller ones save memory
        and disk and round the scores.
    """

    kind: str = "auto"
    num_leaves: int | None = None
    leaves_to_search: int | None = None
    training_sample_size: int = 100_000
    dimensions_per_block: int = 2
    anisotropic_threshold: float = 0.2
    reorder: int = 100
    reorder_dtype: str = "float32"

    def resolve(self, rows: int) -> ScannSettings:
        """Returns the settings with all defaults filled in for a part of so many rows.

        Raises:
          ElqError: a setting is out of range.
        """
        for name, allowed in (("kind", KINDS), ("reorder_dtype", DTYPES)):
            if getattr(self, name) not in allowed:
                raise ElqError(
                    f"{name} {getattr(self, name)!r}: expected one of {', '.join(allowed)}"
                )
        kind = self.kind
        if kind == "auto":
            kind = "brute_force" if rows < 20_000 else "ah" if rows <= 100_000 else "tree_ah"
        num_leaves = self.num_leaves
        if num_leaves is None:
            num_leaves = max(1, min(rows, round(2 * math.sqrt(rows))))
        leaves_to_search = self.leaves_to_search
        if leaves_to_search is None:
            leaves_to_search = -(-num_leaves // 4)
        resolved = dataclasses.replace(
            self, kind=kind, num_leaves=num_leaves, leaves_to_search=leaves_to_search
        )
        for name, most in (
            ("num_leaves", rows),
            ("leaves_to_search", num_leaves),
            ("training_sample_size", None),
            ("dimensions_per_block", None),
            ("reorder", None),
        ):
            value = getattr(resolved, name)
            if value < 1 or (most is not None and value > most):
                limit = "at least 1" if most is None else f"1 to {most}"
                raise ElqError(f"{name} = {value}: expected {limit}")
        return resolved


class ScannIndex:
    """A ScaNN searcher over all entities. Made by `build` or `open`."""

    kind = "scann"

    def __init__(
        self, searcher: Any, shape: tuple[int, int], settings: ScannSettings, fingerprint: str
    ):
        self._searcher, self._fingerprint = searcher, fingerprint
        self.shape, self.settings = shape, settings
        self._threads = len(os.sched_getaffinity(0))
        self._num_parts = len(searcher.parts) if isinstance(searcher, _Parts) else 1

    @classmethod
    def build(
        cls,
        embeddings: Embeddings | np.ndarray,
        kind: str = "auto",
        *,
        part_rows: int | None = None,
        **settings: Any,
    ) -> ScannIndex:
        """Builds an index; a minute for hundreds of thousands of rows, progress on stderr.

        Memory is needed for the index itself, and for about four times the float32 vectors of one
        part.

        Args:
          embeddings: [E, D].
          kind: one of `KINDS`.
          part_rows: rows of a part at most; None: of 1 GiB of float32.
          **settings: the other fields of `ScannSettings`.

        Raises:
          ElqError: a setting is out of range or unfit for so few rows, NaN or infinity in a row.
        """
        scann = _import_scann()
        rows, width = embeddings.shape
        if part_rows is None:
            part_rows = max(1, _PART_BYTES // (4 * width))
        if part_rows < 1:
            raise ElqError(f"part_rows = {part_rows}: expected at least 1")
        num_parts = -(-rows // part_rows)
        resolved = ScannSettings(kind, **settings).resolve(rows // num_parts)
        shards = checked_shards(embeddings)
        bounds = _part_bounds(rows, num_parts)
        parts = []
        with progress("ScaNN", rows, "entities") as advance:
            advance(0)
            for start, stop in itertools.pairwise(bounds):
                parts.append(_build_part(scann, _float32_rows(shards, start, stop), resolved))
                advance(stop - start)
        return cls(_joined(parts, bounds), (rows, width), resolved, _fingerprint(embeddings))

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes the index; it appears under its name when it is whole.

        Args:
          folder: absent, empty, or an older index, which is replaced.

        Raises:
          ElqError: the folder holds something else.
        """
        folder = pathlib.Path(folder)
        if folder.is_dir() and any(folder.iterdir()) and not is_saved(folder):
            raise ElqError(f"{folder}: holds something that is not an index; give another folder")
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = pathlib.Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            temporary.chmod(0o755)
            try:
                with _quiet():
                    self._searcher.serialize(os.fspath(temporary), relative_path=True)
            except RuntimeError as error:
                full = "No space left" in str(error) or "RESOURCE_EXHAUSTED" in str(error)
                kind = DiskFullError if full else ElqError
                raise kind(f"{folder}: ScaNN cannot write the index: {error}") from error
            settings = dataclasses.asdict(self.settings)
            if math.isnan(self.settings.anisotropic_threshold):
                settings["anisotropic_threshold"] = None  # JSON has no NaN
            description = {
                "format": FORMAT,
                "kind": self.kind,
                "shape": list(self.shape),
                "settings": settings,
                "embeddings": self._fingerprint,
                "parts": self._num_parts,
                "sha256": {
                    path.relative_to(temporary).as_posix(): _sha256(path)
                    for path in sorted(temporary.rglob("*"))
                    if path.is_file()
                },
            }
            write_json(temporary / "index.json", description)
            if folder.exists():
                shutil.rmtree(folder)
            temporary.replace(folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise

    @classmethod
    def open(
        cls, folder: str | os.PathLike[str], embeddings: Embeddings | np.ndarray
    ) -> ScannIndex:
        """Opens a saved index.

        Args:
          folder: what `save` wrote.
          embeddings: those that it must have been built over.

        Raises:
          ElqError: no index here, damaged, or built over other embeddings.
        """
        scann = _import_scann()
        folder = pathlib.Path(folder)
        if not is_saved(folder):
            raise ElqError(f"{folder}: no ScaNN index here (index.json is missing)")
        again = "build it again: python -m elq_jax.build_index"
        try:
            description = json.loads((folder / "index.json").read_text(encoding="utf-8"))
            if description["format"] != FORMAT:
                raise ElqError(
                    f"{folder}: found {description['format']!r}, this program reads {FORMAT!r}; "
                    f"{again}"
                )
            values = description["settings"]
            if values["anisotropic_threshold"] is None:
                values["anisotropic_threshold"] = math.nan
            settings = ScannSettings(**values)
            rows, width = description["shape"]
            fingerprint, digests = description["embeddings"], dict(description["sha256"])
            num_parts = int(description.get("parts", 1))
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, ElqError):
                raise
            raise ElqError(f"{folder}/index.json: damaged ({error!r}); {again}") from error
        if fingerprint != _fingerprint(embeddings) or (rows, width) != tuple(embeddings.shape):
            raise ElqError(f"{folder}: built over other embeddings than these; {again}")
        with ThreadPoolExecutor() as pool:  # ScaNN crashes on damaged files
            found = pool.map(lambda name: _sha256(folder / name), digests)
            for (name, digest), actual in zip(digests.items(), found, strict=True):
                if actual != digest:
                    raise ElqError(f"{folder / name}: missing or damaged; {again}")
        places = [folder] if num_parts == 1 else [_part_folder(folder, i) for i in range(num_parts)]
        try:
            with _quiet():
                parts = [scann.scann_ops_pybind.load_searcher(os.fspath(path)) for path in places]
        except (RuntimeError, ValueError) as error:
            raise ElqError(f"{folder}: ScaNN cannot open it ({error}); {again}") from error
        searcher = _joined(parts, _part_bounds(rows, num_parts))
        return cls(searcher, (rows, width), settings, fingerprint)

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns k entities with high inner products, as far as the index finds them.

        Where the searched leaves hold fewer than k rows, more leaves are searched.

        Args:
          queries: [Q, D] float, finite.
          k: 1 <= k <= E.

        Returns:
          scores [Q, k] float32, descending (inner products, rounded if `reorder_dtype` is smaller
          than float32), and rows [Q, k] int32, no row twice.

        Raises:
          ElqError: wrong width, NaN or infinity in a query, k out of range.
        """
        queries = check_queries(queries, k, self.shape)
        if not len(queries):
            return np.zeros((0, k), np.float32), np.zeros((0, k), np.int32)
        leaves, most = self.settings.leaves_to_search, self.settings.num_leaves
        scores, rows = self._search(queries, k, leaves)
        while (missing := np.isnan(scores).any(axis=1)).any():
            if self.settings.kind != "tree_ah" or leaves >= most:
                raise ElqError(
                    f"ScaNN finds fewer than k = {k} entities for query {missing.argmax()}; "
                    "use the exact index, or build the index with more --reorder"
                )
            leaves = min(2 * leaves, most)
            scores[missing], rows[missing] = self._search(queries[missing], k, leaves)
        return scores, rows

    def _search(self, queries: np.ndarray, k: int, leaves: int) -> tuple[np.ndarray, np.ndarray]:
        """As `search`; NaN scores where rows are missing."""
        options: dict[str, int] = {}
        if self.settings.kind != "brute_force":
            options["pre_reorder_num_neighbors"] = max(self.settings.reorder, 2 * k)
        if self.settings.kind == "tree_ah":
            options["leaves_to_search"] = leaves
        rows, scores = self._searcher.search_batched_parallel(
            np.ascontiguousarray(queries),
            final_num_neighbors=k,
            batch_size=min(256, -(-len(queries) // self._threads)),
            **options,
        )
        return scores, rows.astype(np.int32)


class _Parts:
    """Searchers over consecutive rows of one table, with those methods of a searcher that we use.

    Args:
      parts: ScaNN's searchers.
      bounds: the first row of each, and the number of all rows.
    """

    def __init__(self, parts: Sequence[Any], bounds: Sequence[int]):
        self.parts, self._bounds = parts, bounds

    def search_batched_parallel(
        self, queries: np.ndarray, final_num_neighbors: int, **options: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The best of all parts; what is missing has a NaN score and comes last."""
        found = []
        for part, (start, stop) in zip(self.parts, itertools.pairwise(self._bounds), strict=True):
            k = min(final_num_neighbors, stop - start)
            rows, scores = part.search_batched_parallel(queries, final_num_neighbors=k, **options)
            found.append((rows.astype(np.int64) + start, scores))
        rows, scores = (np.concatenate(arrays, axis=1) for arrays in zip(*found, strict=True))
        best = np.argsort(-scores, axis=1, kind="stable")[:, :final_num_neighbors]
        return np.take_along_axis(rows, best, axis=1), np.take_along_axis(scores, best, axis=1)

    def serialize(self, folder: str, relative_path: bool) -> None:
        """Writes every part to a folder of its own."""
        for number, part in enumerate(self.parts):
            path = _part_folder(pathlib.Path(folder), number)
            path.mkdir()
            part.serialize(os.fspath(path), relative_path=relative_path)


def _joined(parts: Sequence[Any], bounds: Sequence[int]) -> Any:
    return _Parts(parts, bounds) if len(parts) > 1 else parts[0]


def _part_folder(folder: pathlib.Path, number: int) -> pathlib.Path:
    return folder / f"part-{number:05d}"


def _part_bounds(rows: int, num_parts: int) -> list[int]:
    return [number * rows // num_parts for number in range(num_parts + 1)]


def _float32_rows(shards: Sequence[Shard], start: int, stop: int) -> np.ndarray:
    table = np.empty((stop - start, shards[0].values.shape[1]), np.float32)
    for shard in shards:
        first, last = max(start, shard.start), min(stop, shard.start + len(shard.values))
        if first < last:
            rows = slice(first - shard.start, last - shard.start)
            table[first - start : last - start] = shard.float32(rows)
    return table


def _build_part(scann: Any, table: np.ndarray, settings: ScannSettings) -> Any:
    builder = scann.scann_ops_pybind.builder(table, min(10, len(table)), "dot_product")
    if settings.kind == "tree_ah":
        builder = builder.tree(
            num_leaves=settings.num_leaves,
            num_leaves_to_search=settings.leaves_to_search,
            training_sample_size=settings.training_sample_size,
        )
    if settings.kind == "brute_force":
        builder = builder.score_brute_force()
    else:
        builder = builder.score_ah(
            dimensions_per_block=settings.dimensions_per_block,
            anisotropic_quantization_threshold=settings.anisotropic_threshold,
            training_sample_size=settings.training_sample_size,
        ).reorder(settings.reorder, quantize=scann.ReorderType[settings.reorder_dtype.upper()])
    try:
        with _quiet():
            return builder.build()
    except RuntimeError as error:
        raise ElqError(
            f"ScaNN cannot build a {settings.kind} index over {len(table)} rows: {error}"
        ) from error


def is_saved(folder: str | os.PathLike[str]) -> bool:
    """Whether `folder` holds a saved index."""
    return (pathlib.Path(folder) / "index.json").is_file()


def _import_scann() -> Any:
    try:
        import scann
    except ImportError as error:
        raise ElqError(
            f"ScaNN is not usable here ({error}); it runs on Linux with an x86 processor "
            "(pip install scann); use the exact index instead"
        ) from error
    return scann


def _fingerprint(embeddings: Embeddings | np.ndarray) -> str:
    if isinstance(embeddings, Embeddings):
        return embeddings.fingerprint
    values = np.ascontiguousarray(embeddings, np.float32)
    return hashlib.sha256(values).hexdigest()[:32]


def _sha256(path: pathlib.Path) -> str | None:
    """None if there is no such file."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides what ScaNN's C++ code logs on stderr; its errors arrive as exceptions."""
    saved = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
