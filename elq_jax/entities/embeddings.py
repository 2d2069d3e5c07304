"""Reads and writes entity embeddings: numbered shards, written once and read memory-mapped.

A folder holds `embeddings.json` (written before the first shard and never changed) and
`shard-00000-of-00022.npy`, ... Each shard appears under its name only when it is whole, so the set
of existing files is the only progress record: a killed writer resumes with the missing shards,
and several hosts can write disjoint shards of one folder. `digest-00000-of-00022.sha256`, written
before its shard, has the shard's checksum (`sha256sum --check` reads it). Folders of format version
1 may have none; in those of version 2 a shard without one is an error.

| dtype    | a shard's .npy                 | read back as                                    |
| -------- | ------------------------------ | ----------------------------------------------- |
| float32  | float32 [n, D]                 | itself                                          |
| bfloat16 | uint16 [n, D], the bit pattern | bfloat16                                        |
| int8     | int8 [n, D]                    | value * scale; `scale-....npy` is float32 [n],  |
|          |                                | the largest absolute value of the row / 127     |
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import ml_dtypes
import msgspec
import numpy as np

from elq_jax.core.errors import DataError, ElqError
from elq_jax.storage.checksums import are_cheap, check_digest, read_digests, read_json
from elq_jax.storage.files import (
    array_digest,
    atomic_write,
    make_folder,
    map_array,
    save_array,
)
from elq_jax.storage.resume import ResumeRecord

FORMAT_VERSION = 2
_WITHOUT_CHECKSUMS = 1  # older version, whose shards may have none
_DESCRIPTION = "embeddings.json"
_REMOVE = "remove it and run encode_entities again"
_AGAIN = "copy the folder again, or remove it and run encode_entities again"
DTYPES = ("float32", "bfloat16", "int8")
_STORED_AS = {"float32": np.float32, "bfloat16": np.uint16, "int8": np.int8}


class Shard(NamedTuple):
    """Consecutive rows of a table in their stored type, in the host's memory or a device's.

    Attributes:
      start: row number, in the whole table, of this shard's first row.
      values: [n, D] float32, bfloat16 or int8.
      scale: [n] float32 for int8, otherwise None.
    """

    start: int
    values: np.ndarray
    scale: np.ndarray | None = None

    @property
    def dtype(self) -> str:
        """Returns the stored type of the rows, one of `DTYPES`."""
        return "int8" if self.scale is not None else self.values.dtype.name

    def part(self, start: int, stop: int) -> Shard:
        """Returns rows `start` to `stop` of the whole table, all of them in this shard (views)."""
        cut = slice(start - self.start, stop - self.start)
        return Shard(start, self.values[cut], None if self.scale is None else self.scale[cut])

    def astype(self, dtype: str | None) -> Shard:
        """Returns the rows stored as one of `DTYPES`; None keeps their type."""
        if dtype in (None, self.dtype):
            return self
        if dtype == "int8":
            return Shard(self.start, *quantize(self.float32()))
        return Shard(self.start, self.float32().astype(np.dtype(dtype)))

    def float32(self, rows: Any = slice(None)) -> np.ndarray:
        """Returns the given rows of the shard as float32 [n, D] (a view where nothing changes)."""
        values = self.values[rows].astype(np.float32, copy=False)
        return values if self.scale is None else values * self.scale[rows, None]


def quantize(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rounds rows to int8 with one scale per row: `values ~ int8 * scale[:, None]`.

    Args:
      values: [n, D] float32, finite.

    Returns:
      int8 [n, D] and scale float32 [n] (largest absolute value of the row / 127; 1 for a zero row).
    """
    scale = np.abs(values).max(axis=1, initial=0) / np.float32(127)
    scale = np.where(scale > 0, scale, 1).astype(np.float32)
    return np.rint(values / scale[:, None]).astype(np.int8), scale


def first_bad_row(values: np.ndarray) -> int | None:
    """Returns the first row of [n, D] that holds NaN or infinity, or None."""
    bad = ~np.isfinite(values).all(axis=1)
    return int(bad.argmax()) if bad.any() else None


class Description(msgspec.Struct, frozen=True):
    """The file embeddings.json.

    Attributes:
      format_version: version of the file, `FORMAT_VERSION`.
      rows: E, number of entities.
      width: D, width of the vectors.
      dtype: stored type of the vectors.
      shard_rows: number of rows of every shard but the last.
      catalogue_fingerprint: fingerprint of the catalogue whose entities these are.
      encoder_fingerprint: fingerprint of the encoder that computed them.
    """

    format_version: int
    rows: Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
    width: Annotated[int, msgspec.Meta(ge=1, le=2**16)]
    dtype: Literal["float32", "bfloat16", "int8"]
    shard_rows: Annotated[int, msgspec.Meta(ge=1)]
    catalogue_fingerprint: str
    encoder_fingerprint: str


class _Layout:
    """The description in embeddings.json and the file names that follow from it."""

    def __init__(self, folder: str | os.PathLike[str], description: Description):
        self.folder, self.description = pathlib.Path(folder), description
        self.rows, self.width = description.rows, description.width
        self.dtype, self.shard_rows = description.dtype, description.shard_rows
        self.num_shards = -(-self.rows // self.shard_rows)

    @classmethod
    def read(cls, folder: str | os.PathLike[str]) -> _Layout:
        path = pathlib.Path(folder) / _DESCRIPTION
        if not path.is_file():
            raise ElqError(
                f"{folder}: found no entity embeddings (embeddings.json is missing); "
                "give the folder that encode_entities wrote"
            )
        content = read_json(path, dict[str, Any], _AGAIN)
        if content.get("format_version") not in (FORMAT_VERSION, _WITHOUT_CHECKSUMS):
            raise ElqError(
                f"{path}: found format_version {content.get('format_version')!r}, expected "
                f"{FORMAT_VERSION}; {_AGAIN}"
            )
        return cls(folder, read_json(path, Description, _AGAIN))

    def path(self, shard: int, kind: str = "shard") -> pathlib.Path:
        suffix = "sha256" if kind == "digest" else "npy"
        return self.folder / f"{kind}-{shard:05d}-of-{self.num_shards:05d}.{suffix}"

    def shard_range(self, shard: int) -> tuple[int, int]:
        if not 0 <= shard < self.num_shards:
            raise ElqError(f"shard {shard}: expected 0 <= shard < {self.num_shards}")
        start = shard * self.shard_rows
        return start, min(start + self.shard_rows, self.rows)

    def missing_shards(self) -> list[int]:
        return [i for i in range(self.num_shards) if not self.path(i).is_file()]


class EmbeddingsWriter:
    """Writes a folder of embeddings shard by shard, in any order; resumes a stopped writer.

    Args:
      folder: path of the folder, made if absent. If it holds embeddings of the same settings, only
        the missing shards need to be written.
      rows: E, number of entities.
      width: D, width of the vectors.
      dtype: stored type, "float32", "bfloat16" or "int8" (with a float32 scale per row).
      shard_rows: number of rows of every shard but the last.
      catalogue_fingerprint: fingerprint of the catalogue of these entities.
      encoder_fingerprint: fingerprint of the encoder's weights and of everything else that vectors
        depend on.

    Raises:
      ElqError: an argument is out of range, or the folder holds embeddings of other settings.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        rows: int,
        width: int,
        dtype: str = "float32",
        shard_rows: int = 65536,
        catalogue_fingerprint: str = "",
        encoder_fingerprint: str = "",
    ):
        if dtype not in DTYPES:
            raise ElqError(f"dtype {dtype!r}: expected one of {', '.join(DTYPES)}")
        for name, value in (("rows", rows), ("width", width), ("shard_rows", shard_rows)):
            if value < 1:
                raise ElqError(f"{name} = {value}: expected at least 1")
        description = Description(
            FORMAT_VERSION,
            int(rows),
            int(width),
            dtype,
            int(shard_rows),
            catalogue_fingerprint,
            encoder_fingerprint,
        )
        folder = pathlib.Path(folder)
        make_folder(folder)
        record = ResumeRecord(folder / _DESCRIPTION, msgspec.to_builtins(description))
        recorded = record.read() or {}
        if recorded.get("format_version") == _WITHOUT_CHECKSUMS:  # begun by an older version
            description = msgspec.structs.replace(description, format_version=_WITHOUT_CHECKSUMS)
            record = ResumeRecord(record.path, msgspec.to_builtins(description))
        if not record.check():
            if any(folder.glob("shard-*.npy")):
                raise ElqError(
                    f"{folder}: holds shards but no {_DESCRIPTION} that describes them; "
                    "remove them or give another folder"
                )
            record.write()
        self._layout = _Layout(folder, description)

    @property
    def num_shards(self) -> int:
        """Returns the number of shards of the whole table."""
        return self._layout.num_shards

    def shard_range(self, shard: int) -> tuple[int, int]:
        """Returns the half-open range of rows that shard number `shard` holds."""
        return self._layout.shard_range(shard)

    def missing_shards(self) -> list[int]:
        """Returns the numbers of the shards that are not written yet, ascending."""
        return self._layout.missing_shards()

    def write_shard(self, shard: int, values: np.ndarray) -> None:
        """Writes one shard; it is on disk and whole when this returns.

        Args:
          shard: number of the shard.
          values: [n, D] floating, the vectors of rows `shard_range(shard)`.

        Raises:
          ElqError: wrong shape, or a vector with NaN or infinity (the row is named).
        """
        layout = self._layout
        start, stop = layout.shard_range(shard)
        values = np.asarray(values, np.float32)
        if values.shape != (stop - start, layout.width):
            raise ElqError(
                f"shard {shard}: found shape {values.shape}, "
                f"expected {(stop - start, layout.width)}"
            )
        stored, scale = values, None
        if layout.dtype == "bfloat16":
            stored = values.astype(ml_dtypes.bfloat16)
        bad = first_bad_row(stored)
        if bad is not None:
            raise ElqError(
                f"{layout.folder}: the embedding of row {start + bad} holds NaN or infinity; "
                "nothing was written for its shard; check the encoder's weights"
            )
        if layout.dtype == "int8":
            stored, scale = quantize(values)
        stored = stored.view(_STORED_AS[layout.dtype])
        # The values come last: a shard that exists has its scale and its checksum too.
        arrays = {layout.path(shard): stored}
        if scale is not None:
            arrays = {layout.path(shard, "scale"): scale} | arrays
        digests = [f"{array_digest(array)}  {path.name}\n" for path, array in arrays.items()]
        with atomic_write(layout.path(shard, "digest")) as file:
            file.write("".join(digests).encode())
        for path, array in arrays.items():
            save_array(path, array)

    def finish(self) -> Embeddings:
        """Opens the finished embeddings.

        Raises:
          ElqError: a shard is missing.
        """
        return Embeddings.open(self._layout.folder)


def recorded_catalogue(folder: str | os.PathLike[str]) -> str | None:
    """Reads the fingerprint of the catalogue of a folder's embeddings, finished or not.

    Returns None where there are no embeddings.
    """
    if not (pathlib.Path(folder) / _DESCRIPTION).exists():
        return None
    return _Layout.read(folder).description.catalogue_fingerprint


class Embeddings:
    """The vectors of all entities, [E, D], memory-mapped. Made by `open` and `joined`."""

    def __init__(self, layout: _Layout, shards: list[Shard]):
        self._layout, self._shards = layout, shards
        self._starts = np.array([shard.start for shard in shards])

    @classmethod
    def open(
        cls,
        folder: str | os.PathLike[str],
        catalogue_fingerprint: str | None = None,
        encoder_fingerprint: str | None = None,
    ) -> Embeddings:
        """Opens a finished folder without reading the vectors.

        Args:
          folder: path of a folder that `EmbeddingsWriter` wrote.
          catalogue_fingerprint: fingerprint of the catalogue to expect; None: not checked.
          encoder_fingerprint: fingerprint of the encoder to expect; None: not checked.

        Raises:
          ElqError: no embeddings, unfinished, damaged, or of another catalogue or encoder.
        """
        layout = _Layout.read(folder)
        for name, found, expected in (
            ("catalogue", layout.description.catalogue_fingerprint, catalogue_fingerprint),
            ("encoder", layout.description.encoder_fingerprint, encoder_fingerprint),
        ):
            if expected is not None and found != expected:
                raise ElqError(
                    f"{folder}: holds embeddings of another {name} (fingerprint {found}, expected "
                    f"{expected}); encode this catalogue with this encoder: "
                    "python -m elq_jax.encode_entities"
                )
        # Counted first: embeddings.json may speak of more shards than could ever be looked for.
        missing = layout.num_shards - sum(1 for _ in layout.folder.glob("shard-*.npy"))
        if missing <= 0:
            missing = len(layout.missing_shards())
        if missing:
            raise ElqError(
                f"{folder}: is unfinished, {missing} of {layout.num_shards} shards are missing; "
                "run encode_entities with the same settings again to resume"
            )
        embeddings = cls(layout, [_open_shard(layout, i) for i in range(layout.num_shards)])
        if are_cheap(layout.folder.glob("*.npy")):
            embeddings.check_digests()
        return embeddings

    @classmethod
    def joined(
        cls, parts: Sequence[Embeddings], folder: pathlib.Path, catalogue_fingerprint: str
    ) -> Embeddings:
        """Joins opened embeddings: the rows of each follow those of the one before.

        Args:
          parts: embeddings of one folder each, of the same width.
          folder: path of the folder that they are all in.
          catalogue_fingerprint: fingerprint of the joined catalogue.
        """
        rows = sum(map(len, parts))
        description = msgspec.structs.replace(
            parts[0]._layout.description, rows=rows, catalogue_fingerprint=catalogue_fingerprint
        )
        shards, start = [], 0
        for part in parts:
            shards += [shard._replace(start=start + shard.start) for shard in part.shards]
            start += len(part)
        return cls(_Layout(folder, description), shards)

    def check_digests(self) -> list[str]:
        """Compares all shards with their checksums.

        Returns:
          names of the shards that have none, as in folders of format version 1.

        Raises:
          DataError: a shard is damaged, or has no checksum in a folder of version 2.
        """
        layout, without = self._layout, []
        for shard in range(layout.num_shards):
            path = layout.path(shard)
            digest_path = layout.path(shard, "digest")
            if not os.path.lexists(digest_path):
                if layout.description.format_version != _WITHOUT_CHECKSUMS:
                    raise DataError(f"missing: the checksum of {path.name}; {_AGAIN}", digest_path)
                without.append(path.name)
                continue
            digests = read_digests(digest_path, _AGAIN)
            kinds = ("shard", "scale") if layout.dtype == "int8" else ("shard",)
            names = {layout.path(shard, kind).name for kind in kinds}
            if digests.keys() != names:
                message = f"checksums of {sorted(digests)}; expected of {sorted(names)}; {_AGAIN}"
                raise DataError(message, digest_path)
            for name, expected in digests.items():
                check_digest(layout.folder / name, expected, _AGAIN)
        return without

    @property
    def folder(self) -> pathlib.Path:
        """Returns the path of the folder."""
        return self._layout.folder

    @property
    def shape(self) -> tuple[int, int]:
        """Returns the shape of the table, (E, D)."""
        return self._layout.rows, self._layout.width

    @property
    def shard_rows(self) -> int:
        """Returns the number of rows of every shard but the last."""
        return self._layout.shard_rows

    @property
    def dtype(self) -> str:
        """Returns the stored type of the vectors: "float32", "bfloat16" or "int8"."""
        return self._layout.dtype

    @property
    def catalogue_fingerprint(self) -> str:
        """Returns the fingerprint of the catalogue of these entities."""
        return self._layout.description.catalogue_fingerprint

    @property
    def encoder_fingerprint(self) -> str:
        """Returns the fingerprint of the encoder that computed the vectors."""
        return self._layout.description.encoder_fingerprint

    @property
    def fingerprint(self) -> str:
        """Identifies the table: a digest of catalogue, encoder, shape and dtype."""
        names = ("catalogue_fingerprint", "encoder_fingerprint", "rows", "width", "dtype")
        content = json.dumps([getattr(self._layout.description, name) for name in names])
        return hashlib.sha256(content.encode()).hexdigest()[:32]

    @property
    def shards(self) -> list[Shard]:
        """Returns all shards in order, memory-mapped, in the stored type."""
        return list(self._shards)

    def __len__(self) -> int:
        return self._layout.rows

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """Returns the vectors of entities.

        Args:
          ids: [n] int, 0 <= id < E, in any order, repeats allowed.

        Returns:
          [n, D] float32, a copy.

        Raises:
          ElqError: an id is out of range.
        """
        ids = np.asarray(ids)
        if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
            raise ElqError(f"ids: expected integers [n], found {ids.dtype} {list(ids.shape)}")
        outside = (ids < 0) | (ids >= len(self))
        if outside.any():
            raise ElqError(f"row {ids[outside.argmax()]}: expected 0 <= row < {len(self)}")
        ids = ids.astype(np.int64)
        vectors = np.empty((len(ids), self.shape[1]), np.float32)
        owner = np.searchsorted(self._starts, ids, "right") - 1
        for number in np.unique(owner):
            chosen_mask, shard = owner == number, self._shards[number]
            vectors[chosen_mask] = shard.float32(ids[chosen_mask] - shard.start)
        return vectors

    def __getitem__(self, ids: Any) -> np.ndarray:
        """Returns float32 vectors as NumPy does: id -> [D], slice or list of ids -> [n, D]."""
        if isinstance(ids, slice):
            return self.rows(np.arange(*ids.indices(len(self))))
        ids = np.asarray(ids)
        return self.rows(np.atleast_1d(ids)).reshape(*ids.shape, self.shape[1])

    def blocks(self, block_rows: int = 65536) -> Iterator[tuple[int, np.ndarray]]:
        """Yields (first row, float32 [n, D]) over the whole table in order.

        Blocks have at most `block_rows` rows and never cross a shard. Float32 blocks are views of
        the file.
        """
        for shard in self._shards:
            for start in range(0, len(shard.values), block_rows):
                yield shard.start + start, shard.float32(slice(start, start + block_rows))


def checked_shards(table: Embeddings | np.ndarray) -> list[Shard]:
    """Returns the shards of embeddings, or an array as one shard, after one pass over the values.

    Args:
      table: [E, D] vectors; an array of other floats than bfloat16 is converted to float32.

    Raises:
      ElqError: not of shape (E, D) with at least one row, or a row with NaN or infinity.
    """
    if isinstance(table, Embeddings):
        shards = table.shards
    else:
        values = np.asarray(table)
        if values.ndim != 2 or 0 in values.shape:
            raise ElqError(
                f"embeddings: found shape {values.shape}, expected (E, D) with at least one row"
            )
        if values.dtype != ml_dtypes.bfloat16:
            values = np.asarray(values, np.float32)
        shards = [Shard(0, values)]
    return [checked(shard) for shard in shards]


def checked(shard: Shard) -> Shard:
    """Returns the shard, or raises an ElqError that names its first row with NaN or infinity."""
    bad = None if _is_finite(shard) else first_bad_row(shard.float32())
    if bad is not None:
        raise ElqError(
            f"embeddings: row {shard.start + bad} holds NaN or infinity; encode the catalogue again"
        )
    return shard


def _is_finite(shard: Shard) -> bool:
    """Checks quickly for NaN and infinity; may be False for huge finite values."""
    if shard.scale is not None:
        return bool(np.isfinite(shard.scale).all())
    if shard.values.dtype == ml_dtypes.bfloat16:
        return bool((shard.values.view(np.uint16) & 0x7FFF).max() < 0x7F80)
    with np.errstate(all="ignore"):  # NaN and infinity survive summation
        return bool(np.isfinite(shard.values.sum(axis=0)).all())


def _open_shard(layout: _Layout, number: int) -> Shard:
    start, stop = layout.shard_range(number)
    values = map_array(
        layout.path(number), _STORED_AS[layout.dtype], (stop - start, layout.width), _REMOVE
    )
    scale = None
    if layout.dtype == "bfloat16":
        values = values.view(ml_dtypes.bfloat16)
    if layout.dtype == "int8":
        scale = map_array(layout.path(number, "scale"), np.float32, (stop - start,), _REMOVE)
    return Shard(start, values, scale)
