"""Keeps a catalogue as a list of segments, which never change, and a set of deleted rows.

A segment is a folder with `catalogue.arrow` and `embeddings/`. The first is the linker directory
itself, until the catalogue is compacted; it may have `index/`, `names/` and `words/` too. The file
`catalogue.json` names the segments:

    {"format": "elq_jax catalogue of segments 1", "number": 17,
     "segments": [{"folder": ".", "rows": 214958, "catalogue_fingerprint": "2498..."},
                  {"folder": "segments/000017", "rows": 3, "catalogue_fingerprint": "81f0..."}],
     "deleted": {"file": "segments/000016.deleted.npy", "rows": 2, "sha256": "c4d9..."}}

The row of an entity is its place in its segment, plus the rows of all segments before it. To change
a catalogue is to write new segments beside the old ones, and then to replace this one file, so that
a reader sees all of a change or nothing of it, and a writer that is killed leaves only files that
nothing names. A directory without the file, as all are that nobody has changed, is one segment.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, TypeVar

import msgspec
import numpy as np
import pyarrow as pa

from elq_jax.core.errors import DataError, ElqError
from elq_jax.entities.build import BYTES_PER_BATCH, ROWS_PER_BATCH
from elq_jax.entities.catalogue import Catalogue, CatalogueWriter, Fingerprint
from elq_jax.entities.embeddings import Embeddings, EmbeddingsWriter
from elq_jax.storage import layout
from elq_jax.storage.checksums import Sha256, check_digest, read_json
from elq_jax.storage.files import (
    array_digest,
    atomic_folder,
    atomic_write,
    link_or_copy,
    make_folder,
    map_array,
    save_array,
    sync_folder,
    write_json,
)

T = TypeVar("T")

FIRST = "."
UNFINISHED = "unfinished"  # segment that is being written
_FORMAT = "elq_jax catalogue of segments 1"
_AGAIN = "copy the linker directory again"
_Name = Annotated[str, msgspec.Meta(pattern=rf"^(\.|{layout.SEGMENTS}/\d{{6,}})$")]
_DeletedName = Annotated[str, msgspec.Meta(pattern=rf"^{layout.SEGMENTS}/\d{{6,}}\.deleted\.npy$")]
_Count = Annotated[int, msgspec.Meta(ge=1)]


class Entry(msgspec.Struct, frozen=True):
    """Describes a segment in catalogue.json.

    Attributes:
      folder: folder of the segment in the linker directory.
      rows: number of its rows.
      catalogue_fingerprint: fingerprint of its catalogue.
    """

    folder: _Name
    rows: _Count
    catalogue_fingerprint: str


class Deleted(msgspec.Struct, frozen=True):
    """Describes the file of the deleted rows, int64 [n], ascending.

    Attributes:
      file: path of the file in the linker directory.
      rows: n.
      sha256: checksum of the file.
    """

    file: _DeletedName
    rows: _Count
    sha256: Sha256


class SegmentList(msgspec.Struct, frozen=True, kw_only=True):
    """The file catalogue.json.

    Attributes:
      format: version of the file.
      number: number of changes since the catalogue was built.
      segments: segments in the order of their rows.
      deleted: deleted rows, if there are any.
    """

    format: Literal["elq_jax catalogue of segments 1"] = _FORMAT
    number: Annotated[int, msgspec.Meta(ge=0)]
    segments: Annotated[list[Entry], msgspec.Meta(min_length=1)]
    deleted: Deleted | None = None

    @property
    def fingerprint(self) -> str:
        """Returns the fingerprint of the catalogue: that of a single segment, or of the list."""
        if len(self.segments) == 1 and self.deleted is None:
            return self.segments[0].catalogue_fingerprint
        fingerprints = [entry.catalogue_fingerprint for entry in self.segments]
        content = msgspec.json.encode([fingerprints, self.deleted and self.deleted.sha256])
        return hashlib.sha256(content).hexdigest()


@dataclass(frozen=True, eq=False)
class Segment:
    """Holds an opened segment.

    Attributes:
      name: folder of the segment in the linker directory.
      folder: path of this folder.
      catalogue: its entities.
      embeddings: their vectors.
    """

    name: str
    folder: pathlib.Path
    catalogue: Catalogue
    embeddings: Embeddings


@dataclass(frozen=True, eq=False)
class Segments:
    """Holds the opened segments of a linker directory.

    Attributes:
      folder: linker directory.
      number: number of changes since the catalogue was built.
      parts: segments in the order of their rows.
      deleted: [n] int64, deleted rows, ascending.
      catalogue: catalogue of all segments.
      embeddings: vectors of all segments.
      stamp: what `read_stamp` returned before they were opened.
    """

    folder: pathlib.Path
    number: int
    parts: tuple[Segment, ...]
    deleted: np.ndarray
    catalogue: Catalogue
    embeddings: Embeddings
    stamp: tuple[int, ...] | None

    @property
    def are_plain(self) -> bool:
        """Returns whether this is one segment of which nothing is deleted."""
        return len(self.parts) == 1 and not len(self.deleted)

    @property
    def starts(self) -> list[int]:
        """Returns the first row of each segment, and E."""
        return [*itertools.accumulate((len(part.catalogue) for part in self.parts), initial=0)]

    def summary(self) -> str:
        """Returns lines with the numbers of entities, segments, deleted rows and changes."""
        rows = [len(part.catalogue) for part in self.parts]
        is_worth_it = sum(rows[1:]) + len(self.deleted) > 0.1 * sum(rows)
        lines = {
            "entities": f"{self.catalogue.num_entities:,}",
            "segments": f"{len(rows)}, of {' + '.join(f'{number:,}' for number in rows)} rows",
            "deleted rows": f"{len(self.deleted):,}",
            "changes": f"{self.number:,} since the catalogue was built",
            "vectors": f"{self.embeddings.shape[1]} x {self.embeddings.dtype}",
            "compact": "makes linking faster" if is_worth_it else "not needed",
        }
        return "\n".join(f"{name:12}  {text}" for name, text in lines.items())

    def embeddings_writer(
        self, folder: pathlib.Path, rows: int, fingerprint: str, shard_rows: int
    ) -> EmbeddingsWriter:
        """Begins the vectors of a new segment, or resumes them, in the form of the first one's.

        Args:
          folder: folder of the segment.
          rows: number of its rows.
          fingerprint: fingerprint of its catalogue.
          shard_rows: number of rows of every shard but the last.
        """
        first = self.parts[0].embeddings
        return EmbeddingsWriter(
            folder / layout.EMBEDDINGS,
            rows,
            first.shape[1],
            first.dtype,
            shard_rows,
            fingerprint,
            first.encoder_fingerprint,
        )

    def copy_others(self, folder: pathlib.Path) -> None:
        """Copies all segments but the first, and the list, into a folder that has the first."""
        for part in self.parts[1:]:
            link_or_copy(part.folder, folder / part.name)
        names = [FIRST, *(part.name for part in self.parts[1:])]
        catalogues = [part.catalogue for part in self.parts]
        _write_list(folder, self.number, [*zip(names, catalogues, strict=True)], self.deleted)


def read_stamp(folder: pathlib.Path) -> tuple[int, ...] | None:
    """Returns what changes whenever the list of segments does, by one `stat`; None without one."""
    try:
        status = os.stat(folder / layout.SEGMENT_LIST)
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def read_list(folder: pathlib.Path) -> SegmentList | None:
    """Reads catalogue.json of a linker directory; None where there is none.

    Raises:
      DataError: the file is damaged.
    """
    path = folder / layout.SEGMENT_LIST
    return read_json(path, SegmentList, _AGAIN) if os.path.lexists(path) else None


def first_folder(folder: str | os.PathLike[str]) -> pathlib.Path:
    """Returns the folder of the first segment of a linker directory, which may have an index."""
    listed = read_list(pathlib.Path(folder))
    return pathlib.Path(folder) / (listed.segments[0].folder if listed else FIRST)


def open_segments(
    folder: str | os.PathLike[str], known: Sequence[Segment] = (), encoder: str | None = None
) -> Segments:
    """Opens the segments of a linker directory, or of a folder that encode_entities wrote.

    Args:
      folder: path of the folder.
      known: segments that are open already, by an earlier call.
      encoder: fingerprint of the entity encoder to expect; None: not checked.

    Raises:
      ElqError: a segment is missing or damaged, or does not belong to the list.
    """
    folder, parts = pathlib.Path(folder), {part.name: part for part in known}
    return opened_again(folder, lambda: _open(folder, parts, encoder, read_stamp(folder)))


def opened_again(folder: pathlib.Path, opens: Callable[[], T]) -> T:
    """Opens something in a linker directory, and again if its list of segments was replaced.

    A writer may remove a segment after its name was read and before it is opened.

    Args:
      folder: linker directory.
      opens: function that opens segments.
    """
    while True:
        stamp = read_stamp(folder)
        try:
            return opens()
        except (ElqError, OSError):
            if read_stamp(folder) == stamp:
                raise


def _open(
    folder: pathlib.Path,
    known: Mapping[str, Segment],
    encoder: str | None,
    stamp: tuple[int, ...] | None,
) -> Segments:
    listed, path = read_list(folder), folder / layout.SEGMENT_LIST
    if listed is None:
        part = known.get(FIRST) or open_segment(folder, FIRST, encoder)
        nothing = np.zeros(0, np.int64)
        return Segments(folder, 0, (part,), nothing, part.catalogue, part.embeddings, stamp)
    parts = []
    for entry in listed.segments:
        part = known.get(entry.folder)
        if part is None or part.catalogue.fingerprint != entry.catalogue_fingerprint:
            part = open_segment(folder, entry.folder, encoder)
        found = part.catalogue.fingerprint, len(part.catalogue)
        if found != (entry.catalogue_fingerprint, entry.rows):
            message = f"{entry.folder} holds another catalogue than the one listed; {_AGAIN}"
            raise DataError(message, path)
        parts.append(part)
    rows = sum(entry.rows for entry in listed.segments)
    deleted = _read_deleted(folder, listed.deleted, rows)
    if len(parts) == 1 and not len(deleted):
        catalogue, embeddings = parts[0].catalogue, parts[0].embeddings
    else:
        fingerprint = listed.fingerprint
        catalogue = Catalogue.joined([each.catalogue for each in parts], path, fingerprint, deleted)
        embeddings = Embeddings.joined([each.embeddings for each in parts], folder, fingerprint)
    return Segments(folder, listed.number, tuple(parts), deleted, catalogue, embeddings, stamp)


def open_segment(folder: pathlib.Path, name: str, encoder: str | None = None) -> Segment:
    """Opens a segment.

    Args:
      folder: linker directory.
      name: folder of the segment in it.
      encoder: fingerprint of the entity encoder to expect; None or "": not checked.

    Raises:
      ElqError: a part is missing or damaged, or the vectors are unfinished, or of another catalogue
        or another encoder (if both encoders are known).
    """
    own = folder / name
    catalogue = Catalogue.open(own / layout.CATALOGUE)
    embeddings = Embeddings.open(own / layout.EMBEDDINGS, catalogue.fingerprint)
    recorded = embeddings.encoder_fingerprint
    if encoder and recorded and encoder != recorded:
        raise ElqError(
            f"{embeddings.folder}: embeddings of another entity encoder (fingerprint {recorded}) "
            f"than the one in {folder / layout.PARAMETERS} ({encoder}); remove the folder and "
            f"encode the catalogue again: python -m elq_jax.encode_entities --encoder {folder} "
            f"--catalogue {own / layout.CATALOGUE} --output {own}"
        )
    return Segment(name, own, catalogue, embeddings)


def _read_deleted(folder: pathlib.Path, deleted: Deleted | None, rows: int) -> np.ndarray:
    if deleted is None:
        return np.zeros(0, np.int64)
    path = folder / deleted.file
    check_digest(path, deleted.sha256, _AGAIN)
    values = map_array(path, np.int64, (deleted.rows,), _AGAIN)
    if values[0] < 0 or values[-1] >= rows or (np.diff(values) <= 0).any():
        raise DataError(f"not the rows of a catalogue of {rows:,}, ascending; {_AGAIN}", path)
    return values


def replace_list(
    segments: Segments, new: Sequence[tuple[str, Catalogue]], first: int, deleted: np.ndarray
) -> None:
    """Makes a change visible: replaces the list of segments, and removes what it no longer names.

    Only one writer may do so at a time.

    Args:
      segments: segments before the change.
      new: folders and catalogues of segments that are whole on disk.
      first: number of the first segment that they replace; those before it stay.
      deleted: [n] int64, all deleted rows of the new list, ascending.
    """
    folder, number = segments.folder, segments.number + 1
    stay = [(part.name, part.catalogue) for part in segments.parts[:first]]
    remove_unnamed(folder, _write_list(folder, number, [*stay, *new], deleted))


def _write_list(
    folder: pathlib.Path, number: int, parts: Sequence[tuple[str, Catalogue]], deleted: np.ndarray
) -> SegmentList:
    """Writes catalogue.json, and before it the deleted rows if they are others than before."""
    listed, record = read_list(folder), None
    if len(deleted):
        digest = array_digest(deleted)
        record = listed and listed.deleted
        if record is None or record.sha256 != digest:
            name = f"{layout.SEGMENTS}/{number:06d}.deleted.npy"
            save_array(folder / name, deleted)
            record = Deleted(name, len(deleted), digest)
    entries = [Entry(name, len(each), each.fingerprint) for name, each in parts]
    changed = SegmentList(number=number, segments=entries, deleted=record)
    make_folder(folder / layout.SEGMENTS)
    sync_folder(folder / layout.SEGMENTS)
    write_json(folder / layout.SEGMENT_LIST, msgspec.to_builtins(changed))
    sync_folder(folder)
    return changed


def remove_unnamed(folder: pathlib.Path, listed: SegmentList) -> None:
    """Removes what was written for the segments of a linker directory and is not in their list.

    Processes that have removed files open can still read them.
    """
    names = {pathlib.PurePath(entry.folder).name for entry in listed.segments}
    if listed.deleted:
        names.add(pathlib.PurePath(listed.deleted.file).name)
    for path in (folder / layout.SEGMENTS).iterdir():
        if path.name not in names | {UNFINISHED}:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    if all(entry.folder != FIRST for entry in listed.segments):
        for name in (layout.EMBEDDINGS, layout.INDEX, layout.NAMES, layout.WORDS):
            shutil.rmtree(folder / name, ignore_errors=True)
        (folder / layout.CATALOGUE).unlink(missing_ok=True)


def plain_folder(
    source: str | os.PathLike[str], folder: str | os.PathLike[str] | None = None
) -> pathlib.Path:
    """Returns a folder in which all living entities of a linker directory are one segment.

    Args:
      source: linker directory, or a folder that encode_entities wrote.
      folder: folder for a copy of the entities, in a folder of its own, if they are several
        segments or some are deleted.

    Raises:
      ElqError: a copy is needed and `folder` is None.
    """
    source = pathlib.Path(source)
    if read_list(source) is None:
        return source
    segments = open_segments(source)
    if segments.are_plain:
        return segments.parts[0].folder
    if folder is None:
        raise ElqError(
            f"{source}: its catalogue was changed, and has several segments; first run: "
            f"python -m elq_jax.catalogue --linker {source} compact"
        )
    copy = pathlib.Path(folder) / f"catalogue-{segments.catalogue.fingerprint[:16]}"
    if not copy.exists():
        with atomic_folder(copy, "a copy of a catalogue") as temporary:
            write_compacted(segments, temporary)
    return copy


def write_compacted(segments: Segments, folder: pathlib.Path) -> None:
    """Writes the living entities of all segments and their vectors to a folder, as one segment."""
    rows, batches = zip(*segments.catalogue.living_batches(), strict=True)
    living = np.concatenate(rows)
    fingerprint = write_catalogue(folder / layout.CATALOGUE, batches)
    shard_rows = segments.parts[0].embeddings.shard_rows
    writer = segments.embeddings_writer(folder, len(living), fingerprint, shard_rows)
    for shard in writer.missing_shards():
        part = slice(*writer.shard_range(shard))
        writer.write_shard(shard, segments.embeddings.rows(living[part]))


def write_catalogue(path: pathlib.Path, batches: Sequence[pa.RecordBatch]) -> str:
    """Writes a catalogue; returns its fingerprint."""
    fingerprint = fingerprint_of(batches)
    with atomic_write(path) as file:
        writer = CatalogueWriter(file)
        for batch in _joined(batches):
            writer.write(batch)
        writer.finish(fingerprint)
    return fingerprint


def _joined(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Joins batches that follow each other up to the size of those of a built catalogue.

    Every pass over a catalogue takes time for each batch, and entities that are added one by one
    are batches of one row.
    """
    group: list[pa.RecordBatch] = []
    rows = size = 0
    for batch in batches:
        rows, size = rows + batch.num_rows, size + batch.nbytes
        if group and (rows > ROWS_PER_BATCH or size > BYTES_PER_BATCH):
            yield pa.concat_batches(group)
            group, rows, size = [], batch.num_rows, batch.nbytes
        group.append(batch)
    if group:
        yield pa.concat_batches(group)


def fingerprint_of(batches: Iterable[pa.RecordBatch]) -> str:
    """Returns the fingerprint of a catalogue of these rows."""
    fingerprint = Fingerprint()
    for batch in batches:
        columns = (batch.column(name).to_pylist() for name in ("title", "text"))
        for title, text in zip(*columns, strict=True):
            fingerprint.update(title, text)
    return fingerprint.hexdigest()
