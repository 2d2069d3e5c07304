"""Searches approximately on the host with ScaNN; the index is saved and reopened.

| method      | how                                                     | chosen for     |
| ----------- | ------------------------------------------------------- | -------------- |
| brute_force | all rows                                                | E < 20,000     |
| ah          | all rows by 4-bit product codes, the best ones again    | E <= 100,000   |
|             | by their vectors                                        |                |
| tree_ah     | the same within the leaves nearest to the query         | larger         |

While ScaNN builds an index it holds four float32 copies of the vectors. So a large table is built
in parts of consecutive rows, one after the other; a search asks all parts.

Guo et al., "Accelerating large-scale inference with anisotropic vector quantization", ICML 2020.
Sun et al., "SOAR: Improved indexing for approximate nearest neighbor search", NeurIPS 2023.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import msgspec
import numpy as np

from elq_jax.core.errors import DataError, ElqError
from elq_jax.core.settings import check_settings
from elq_jax.entities.embeddings import Embeddings, Shard, checked_shards
from elq_jax.retrieval.base import DESCRIPTION, INDEXES, REPORT, Index, UnavailableError
from elq_jax.storage.progress import progress

if TYPE_CHECKING:
    import jax

_PART_BYTES = 1 << 30  # of float32 vectors
_AGAIN = "build it again: python -m elq_jax.build_index"
# Files of ScaNN's that `write` makes, and the axes of those that are arrays.
_ASSETS = "scann_assets.pbtxt"  # the list of the others
_FILES = (
    *("scann_config.pb", "ah_codebook.pb", "serialized_partitioner.pb"),
    "dp_norms.npy",  # empty for inner products
)
_ARRAYS = {
    "dataset.npy": ("rows", "width"),
    "bfloat16_dataset.npy": ("rows", "width"),
    "int8_dataset.npy": ("rows", "width"),
    "int8_multipliers.npy": ("width",),
    "hashed_dataset.npy": ("rows", "codes"),
    "hashed_dataset_soar.npy": ("rows", "codes"),
    "datapoint_to_token.npy": ("leaves of rows",),
}
_Count = Annotated[int, msgspec.Meta(ge=1)]
_Positive = Annotated[float, msgspec.Meta(gt=0)]


@dataclasses.dataclass(frozen=True)
class ScannSettings:
    """Settings of a ScaNN index. Brute force uses none of them, `ah` none of the tree's.

    Attributes:
      method: kind of search: brute_force compares all vectors, ah short codes of all vectors, and
        tree_ah the codes in some leaves of a tree. auto takes the first below 20,000 entities, the
        second up to 100,000, and the third above.
      num_leaves: number of leaves of the tree; by default twice the square root of the entities.
      leaves_to_search: number of leaves searched for a query, by default an eighth of them, or a
        quarter without `soar_lambda`. More leaves take longer and find more.
      soar_lambda: weight lambda of SOAR, which puts every entity into two leaves that miss it in
        different directions, so that fewer leaves find it; none: one leaf.
      avq_eta: weight eta of errors along a vector where the centres of leaves are placed, as in
        `anisotropic_threshold`; none: all errors weigh the same.
      training_sample_size: number of entities that tree and codes are trained on.
      dimensions_per_block: number of dimensions that share a 4-bit code. Fewer take longer and find
        more.
      anisotropic_threshold: threshold T of the ScaNN paper, which gives errors of the codes along a
        vector more weight than errors across it. 0.2 suits vectors of unit length; none: off.
      reorder: number of entities that the codes find (at least 2k) and whose scores are computed
        again from their vectors.
      reorder_dtype: number format of those vectors; the smaller ones save memory and disk space and
        round scores a little.
      part_rows: largest number of entities in a part of the index, by default as many as take 1 GiB
        in float32.
    """

    method: Literal["auto", "brute_force", "ah", "tree_ah"] = "auto"
    num_leaves: _Count | None = None
    leaves_to_search: _Count | None = None
    soar_lambda: _Positive | None = 2.0
    avq_eta: _Positive | None = 2.5
    training_sample_size: _Count = 100_000
    dimensions_per_block: _Count = 2
    anisotropic_threshold: float | None = 0.2
    reorder: _Count = 100
    reorder_dtype: Literal["float32", "bfloat16", "int8"] = "float32"
    part_rows: _Count | None = None

    def resolve(self, rows: int) -> ScannSettings:
        """Returns the settings with all defaults filled in for a part of `rows` rows.

        Raises:
          ElqError: more leaves than rows, or more to search than there are.
        """
        method, threshold = self.method, self.anisotropic_threshold
        if threshold is not None and math.isnan(threshold):  # ScaNN's own word for off
            return dataclasses.replace(self, anisotropic_threshold=None).resolve(rows)
        if method == "auto":
            method = "brute_force" if rows < 20_000 else "ah" if rows <= 100_000 else "tree_ah"
        if method != "tree_ah":
            tree = dict.fromkeys(("num_leaves", "leaves_to_search", "soar_lambda", "avq_eta"))
            return dataclasses.replace(self, method=method, **tree)
        num_leaves = self.num_leaves
        if num_leaves is None:
            num_leaves = max(1, min(rows, round(2 * math.sqrt(rows))))
        leaves_to_search = self.leaves_to_search
        if leaves_to_search is None:
            leaves_to_search = -(-num_leaves // (8 if self.soar_lambda else 4))
        resolved = dataclasses.replace(
            self, method=method, num_leaves=num_leaves, leaves_to_search=leaves_to_search
        )
        for name, most in (("num_leaves", rows), ("leaves_to_search", num_leaves)):
            if getattr(resolved, name) > most:
                raise ElqError(f"{name}: {getattr(resolved, name)}; expected 1 to {most}")
        return resolved


@INDEXES.register("scann")
class ScannIndex(Index):
    """Approximate search by ScaNN over all entities, in parts of consecutive rows if they are many.

    Args:
      embeddings: [E, D] entity vectors.
      settings: settings with all defaults filled in.
      searcher: searcher of ScaNN, or `_Parts`.
    """

    Settings = ScannSettings
    unnamed_settings: ClassVar[Mapping[str, Any]] = {"soar_lambda": None, "avq_eta": None}

    def __init__(self, embeddings: Embeddings | np.ndarray, settings: ScannSettings, searcher: Any):
        super().__init__(embeddings, settings)
        self._searcher, self._threads = searcher, len(os.sched_getaffinity(0))

    @classmethod
    def build(
        cls,
        embeddings: Embeddings | np.ndarray,
        settings: ScannSettings | None = None,
        *,
        devices: Sequence[jax.Device] | None = None,
    ) -> ScannIndex:
        """Builds an index; a minute for hundreds of thousands of rows, progress on stderr.

        Memory is needed for the index itself, and for about four times the float32 vectors of one
        part.

        Args:
          embeddings: [E, D] entity vectors.
          settings: `ScannSettings`; None: all defaults.
          devices: argument without effect, since the search runs on the host.

        Raises:
          ElqError: a setting is out of range or unfit for so few rows, NaN or infinity in a row.
          UnavailableError: ScaNN is not installed.
        """
        del devices
        scann = _import_scann()
        settings = settings or ScannSettings()
        check_settings(settings)
        rows, width = embeddings.shape
        part_rows = settings.part_rows or max(1, _PART_BYTES // (4 * width))
        num_parts = -(-rows // part_rows)
        resolved = settings.resolve(rows // num_parts)
        shards = checked_shards(embeddings)
        bounds = _part_bounds(rows, num_parts)
        parts = []
        with progress("ScaNN", rows, "entities") as advance:
            advance(0)
            for start, stop in itertools.pairwise(bounds):
                parts.append(_build_part(scann, _float32_rows(shards, start, stop), resolved))
                advance(stop - start)
        return cls(embeddings, resolved, _joined(parts, bounds))

    def write(self, folder: pathlib.Path) -> None:
        """Writes ScaNN's files; of several parts, each to a folder of its own."""
        with _quiet(), _encodable(folder) as path:
            self._searcher.serialize(path, relative_path=True)

    @classmethod
    def read(
        cls, folder: pathlib.Path, embeddings: Embeddings | np.ndarray, settings: ScannSettings
    ) -> ScannIndex:
        """Opens ScaNN's files.

        Raises:
          ElqError: ScaNN refuses them, or they are not what `write` makes of so many rows.
          UnavailableError: ScaNN is not installed.
        """
        load = _import_scann().scann_ops_pybind.load_searcher
        places = sorted(path for path in folder.glob("part-*") if path.is_dir()) or [folder]
        rows, width = embeddings.shape
        bounds = _part_bounds(rows, len(places))
        codes = -(-width // settings.dimensions_per_block)
        per_row = 2 if settings.soar_lambda else 1
        parts = []
        try:
            for place, (start, stop) in zip(places, itertools.pairwise(bounds), strict=True):
                sizes = {"rows": stop - start, "width": width, "codes": codes}
                _check_part(place, sizes | {"leaves of rows": per_row * (stop - start)})
                with _quiet(), _encodable(place) as path:
                    parts.append(load(path))
        except (RuntimeError, ValueError, IndexError) as error:
            if isinstance(error, ElqError):
                raise
            raise ElqError(f"{folder}: ScaNN cannot open this index ({error}); {_AGAIN}") from error
        return cls(embeddings, settings, _joined(parts, bounds))

    def nearest(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Finds k rows of each query; where the leaves hold fewer, more leaves are searched.

        Scores are rounded if `reorder_dtype` is smaller than float32.

        Raises:
          ElqError: the codes give fewer than k rows.
        """
        leaves, most = self.settings.leaves_to_search, self.settings.num_leaves
        scores, rows = self._search(queries, k, leaves)
        while (missing := np.isnan(scores).any(axis=1)).any():
            if self.settings.method != "tree_ah" or leaves >= most:
                raise ElqError(
                    f"ScaNN finds fewer than k = {k} entities for query {missing.argmax()}; "
                    "use the exact index, or build the index with more --reorder"
                )
            leaves = min(2 * leaves, most)
            scores[missing], rows[missing] = self._search(queries[missing], k, leaves)
        return scores, rows

    def _search(self, queries: np.ndarray, k: int, leaves: int) -> tuple[np.ndarray, np.ndarray]:
        """Searches as `nearest` does; scores are NaN where rows are missing."""
        options: dict[str, int] = {}
        if self.settings.method != "brute_force":
            options["pre_reorder_num_neighbors"] = max(self.settings.reorder, 2 * k)
        if self.settings.method == "tree_ah":
            options["leaves_to_search"] = leaves
        rows, scores = self._searcher.search_batched_parallel(
            np.ascontiguousarray(queries),
            final_num_neighbors=k,
            batch_size=min(256, -(-len(queries) // self._threads)),
            **options,
        )
        return scores, rows.astype(np.int32)


def _check_part(folder: pathlib.Path, sizes: Mapping[str, int]) -> None:
    """Checks files before ScaNN reads them: it unpickles `scann_docids.pkl` and trusts all sizes.

    Args:
      folder: folder of one part.
      sizes: number of its entities, of their leaves, of dimensions and of codes of a vector.

    Raises:
      DataError: a file that `write` makes none of, an array of another shape, or a list of files
        that names one outside of the folder.
    """
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    names -= {DESCRIPTION, REPORT, *(name for name in names if (folder / name).is_dir())}
    if unknown := sorted(names - {_ASSETS, *_FILES, *_ARRAYS}):
        raise DataError(f"no file of a ScaNN index; remove it, or {_AGAIN}", folder / unknown[0])
    if _ASSETS not in names:
        raise DataError(f"missing; {_AGAIN}", folder / _ASSETS)
    assets = (folder / _ASSETS).read_text(encoding="utf-8", errors="replace")
    entries = re.sub(r'assets \{\s+asset_type: \w+\s+asset_path: "([^"\\]*)"\s+\}', r"\1", assets)
    if outside := [name for name in entries.split() if name not in names]:
        raise DataError(f"names {outside[0]!r}, which is not beside it; {_AGAIN}", folder / _ASSETS)
    for name in sorted(names & _ARRAYS.keys()):
        try:
            shape = np.load(folder / name, mmap_mode="r", allow_pickle=False).shape
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"damaged ({error}); {_AGAIN}", folder / name) from error
        expected = tuple(sizes[axis] for axis in _ARRAYS[name])
        if shape != expected:
            raise DataError(f"of shape {shape}, expected {expected}; {_AGAIN}", folder / name)


class _Parts:
    """Searchers over consecutive rows of one table, which act as one ScaNN searcher.

    Args:
      parts: searchers of ScaNN.
      bounds: first row of each part, and the number of all rows.
    """

    def __init__(self, parts: Sequence[Any], bounds: Sequence[int]):
        self.parts, self._bounds = parts, bounds

    def search_batched_parallel(
        self, queries: np.ndarray, final_num_neighbors: int, **options: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the best rows of all parts; missing ones have a NaN score and come last."""
        nearest = []
        for part, (start, stop) in zip(self.parts, itertools.pairwise(self._bounds), strict=True):
            k = min(final_num_neighbors, stop - start)
            rows, scores = part.search_batched_parallel(queries, final_num_neighbors=k, **options)
            nearest.append((rows.astype(np.int64) + start, scores))
        rows, scores = (np.concatenate(arrays, axis=1) for arrays in zip(*nearest, strict=True))
        best = np.argsort(-scores, axis=1, kind="stable")[:, :final_num_neighbors]
        return np.take_along_axis(rows, best, axis=1), np.take_along_axis(scores, best, axis=1)

    def serialize(self, folder: str, relative_path: bool) -> None:
        """Writes every part to a folder of its own."""
        for number, part in enumerate(self.parts):
            path = pathlib.Path(folder) / f"part-{number:05d}"
            path.mkdir()
            part.serialize(os.fspath(path), relative_path=relative_path)


def _joined(parts: Sequence[Any], bounds: Sequence[int]) -> Any:
    return _Parts(parts, bounds) if len(parts) > 1 else parts[0]


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
    if settings.method == "tree_ah":
        builder = builder.tree(
            num_leaves=settings.num_leaves,
            num_leaves_to_search=settings.leaves_to_search,
            training_sample_size=settings.training_sample_size,
            soar_lambda=settings.soar_lambda,
            # An entity that is found in both of its leaves counts once.
            overretrieve_factor=settings.soar_lambda and 2.0,
            avq=settings.avq_eta,
        )
    if settings.method == "brute_force":
        builder = builder.score_brute_force()
    else:
        builder = builder.score_ah(
            dimensions_per_block=settings.dimensions_per_block,
            anisotropic_quantization_threshold=math.nan
            if settings.anisotropic_threshold is None
            else settings.anisotropic_threshold,
            training_sample_size=settings.training_sample_size,
        ).reorder(settings.reorder, quantize=scann.ReorderType[settings.reorder_dtype.upper()])
    try:
        with _quiet():
            return builder.build()
    except RuntimeError as error:
        raise ElqError(
            f"ScaNN cannot build a {settings.method} index over {len(table)} rows: {error}"
        ) from error


def _import_scann() -> Any:
    try:
        import scann
    except ImportError as error:
        raise UnavailableError(
            f"ScaNN is not usable here ({error}); it runs on Linux with an x86 processor "
            "(pip install scann); exact search (--index exact) needs nothing"
        ) from error
    return scann


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides the log of ScaNN's C++ code on stderr; its errors arrive as exceptions."""
    saved = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


@contextlib.contextmanager
def _encodable(folder: pathlib.Path) -> Iterator[str]:
    """Yields a path of a folder that ScaNN accepts: it refuses names that are not UTF-8."""
    path = os.fspath(folder)
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            yield f"/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)
    else:
        yield path
