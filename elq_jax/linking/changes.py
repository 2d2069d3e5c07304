"""Adds, changes and removes entities of a linker directory, without training.

A change encodes only what is new, writes it as a segment beside the others, and then replaces the
list of segments (`entities.segments`). One writer works at a time. Readers are never blocked, and
a process that is killed leaves the catalogue as it was before or after the change.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import itertools
import os
import pathlib
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from elq_jax.core.errors import DataError, ElqError
from elq_jax.entities.build import checked_entity, record_batch
from elq_jax.entities.catalogue import (
    SCHEMA,
    Catalogue,
    Entity,
    derived_id,
)
from elq_jax.entities.embeddings import recorded_catalogue
from elq_jax.entities.encode import CatalogueEncoder
from elq_jax.entities.name_index import NameIndex
from elq_jax.entities.segments import (
    UNFINISHED,
    Segments,
    fingerprint_of,
    open_segments,
    replace_list,
    write_catalogue,
    write_compacted,
)
from elq_jax.entities.word_index import WordIndex
from elq_jax.model import bundle
from elq_jax.model.bundle import Model
from elq_jax.retrieval.base import INDEXES, is_saved, read_description
from elq_jax.storage import layout
from elq_jax.storage.files import folder_lock, full_disk, make_folder
from elq_jax.storage.lines import read_jsonl
from elq_jax.storage.progress import progress

_COMPACTING = "compacting"  # the segment of all entities that is being written
_SHARD_ROWS = 1024  # of a segment: so many vectors are lost when a writer is killed
_CHUNK = 16384  # entities of a file that are compared with the catalogue at a time
_EXAMPLES = 5  # ids that are printed
_FEW, _MANY = 1, 16  # sizes of batches that are encoded
_FIELDS = ("title", "text", "wikidata_id", "aliases", "id")

Record = Mapping[str, Any]


@dataclasses.dataclass
class Changes:
    """Lists the ids of the entities that a change is about.

    Attributes:
      added: ids of new entities.
      updated: ids of entities with another content than before.
      removed: ids of entities that are gone.
      unchanged: number of entities that were in the catalogue already, with the same content.
      encoded: number of entities whose vectors are computed.
    """

    added: list[str] = dataclasses.field(default_factory=list)
    updated: list[str] = dataclasses.field(default_factory=list)
    removed: list[str] = dataclasses.field(default_factory=list)
    unchanged: int = 0
    encoded: int = 0

    def summary(self) -> str:
        """Returns a line about the change after it is made."""
        numbers = {
            "added": len(self.added),
            "updated": len(self.updated),
            "removed": len(self.removed),
            "unchanged": self.unchanged,
        }
        text = ", ".join(f"{number:,} {name}" for name, number in numbers.items() if number)
        return f"{text or 'nothing changed'}; {self.encoded:,} encoded"

    def preview(self) -> str:
        """Returns lines about the change before it is made, with some ids of each kind."""
        lines = []
        for name, ids in (
            ("to add", self.added),
            ("to update", self.updated),
            ("to remove", self.removed),
        ):
            line = f"{len(ids):9,} {name}"
            if ids:
                line += f": {', '.join(ids[:_EXAMPLES])}" + ", ..." * (len(ids) > _EXAMPLES)
            lines.append(line)
        lines.append(f"{self.unchanged:9,} unchanged")
        if self.added and self.removed and not self.updated and not self.unchanged:
            lines.append(
                "no entity of the file has an id of the catalogue; if they are the same entities, "
                "give them the ids that `list` prints, or none"
            )
        return "\n".join([*lines, f"{self.encoded:9,} to encode"])


@dataclasses.dataclass
class _Plan:
    """Holds a change before it is made.

    Attributes:
      changes: what changes.
      new: entities of new rows, by the columns of `SCHEMA`.
      sources: rows whose vectors the new rows get, or -1 for those that are encoded.
      gone: rows that are deleted.
    """

    changes: Changes = dataclasses.field(default_factory=Changes)
    new: list[Record] = dataclasses.field(default_factory=list)
    sources: list[int] = dataclasses.field(default_factory=list)
    gone: list[int] = dataclasses.field(default_factory=list)

    def add(self, entity: Record, before: Entity | None = None) -> None:
        """Plans a new row, in place of that of an entity if there is one."""
        self.new.append(entity)
        same_text = before and (before.title, before.text) == (entity["title"], entity["text"])
        self.sources.append(before.row if before and same_text else -1)
        self.changes.encoded += not same_text
        (self.changes.updated if before else self.changes.added).append(entity["id"])


class CatalogueEditor:
    """Changes the catalogue of a linker directory.

        editor = CatalogueEditor("my_linker")
        editor.add([{"title": "Dune (2021 film)", "text": "...", "aliases": ["Dune: Part One"]}])

    An entity is a mapping with the fields of a line of a catalogue's file: title, text, and perhaps
    wikidata_id, aliases and id. Without an id, its id is the Wikidata id, or derived from title and
    text.

    Args:
      folder: linker directory.
      known: its segments, if they are open already.
    """

    def __init__(self, folder: str | os.PathLike[str], known: Segments | None = None):
        self.folder, self._known = pathlib.Path(folder), known
        self._encoder_fingerprint = bundle.read_description(self.folder).entity_encoder
        self._encoders: dict[int, CatalogueEncoder] = {}

    def segments(self) -> Segments:
        """Opens the segments as they are now."""
        known = self._known.parts if self._known else ()
        self._known = open_segments(self.folder, known, self._encoder_fingerprint)
        return self._known

    def entities(self) -> Iterator[dict[str, Any]]:
        """Yields the fields of all entities, as lines of a catalogue's file have them."""
        catalogue = self.segments().catalogue
        for rows, _ in catalogue.living_batches():
            yield from map(_fields, catalogue.entities(rows))

    def add(self, entities: Iterable[Record], source: str = "entities") -> Changes:
        """Adds entities; those that are there already, with the same content, are left alone.

        Args:
          entities: new entities.
          source: name of the file that they are from, for messages.

        Raises:
          ElqError: an entity cannot be used, the catalogue has its id with other content, there is
            no entity encoder, another process is changing the catalogue, or the disk is full. The
            catalogue is as before then.
        """
        with self._lock():
            segments, plan = self.segments(), _Plan()
            for new, present in self._compared(segments.catalogue, entities, source):
                for number, entity in new:
                    if (before := present.get(entity["id"])) is None:
                        plan.add(entity)
                    elif _is_same(entity, before):
                        plan.changes.unchanged += 1
                    else:
                        message = (
                            f"the catalogue has an entity with the id {entity['id']!r} and other "
                            f"content ({before.title!r}); use update to change it, or give another "
                            "id"
                        )
                        raise DataError(message, source, number)
            _check_once(plan.new, source)
            return self._commit(segments, plan)

    def update(self, entities: Iterable[Record], source: str = "entities") -> Changes:
        """Changes entities that are in the catalogue; fields that are not named stay as they are.

        Names (aliases), Wikidata ids and the like are changed without encoding; another title or
        text is encoded.

        Args:
          entities: mappings with the id of an entity (or its Wikidata id, if that is its id) and
            the fields to change.
          source: name of the file that they are from, for messages.

        Raises:
          ElqError: see `add`; or the catalogue has no such entity.
        """
        with self._lock():
            segments, plan = self.segments(), _Plan()
            numbered = list(_numbered(entities))
            ids = [_id_of_change(record, source, number) for number, record in numbered]
            before = self._all_with(segments.catalogue, ids)
            for own, (number, record) in zip(ids, numbered, strict=True):
                if not before[own]:
                    raise DataError(f"no entity has the id {own!r}; use add", source, number)
                first = before[own][0]
                changes = {name: record[name] for name in _FIELDS if name in record}
                whole = checked_entity(_fields(first) | changes, source, number) | {"id": own}
                if _is_same(whole, first) and len(before[own]) == 1:
                    plan.changes.unchanged += 1
                    continue
                plan.gone += [entity.row for entity in before[own]]
                plan.add(whole, first)
            return self._commit(segments, plan)

    def remove(self, ids: Sequence[str]) -> Changes:
        """Removes the entities with these ids.

        Raises:
          ElqError: no entity has one of the ids, none would be left, or another process is changing
            the catalogue. The catalogue is as before then.
        """
        if isinstance(ids, str):
            raise ElqError("ids: found one string; give a list of ids")
        with self._lock():
            segments, plan = self.segments(), _Plan()
            for own, entities in self._all_with(segments.catalogue, [*dict.fromkeys(ids)]).items():
                if not entities:
                    raise ElqError(f"{self.folder}: no entity has the id {own!r}")
                plan.gone += [entity.row for entity in entities]
                plan.changes.removed.append(own)
            return self._commit(segments, plan)

    def sync(
        self,
        path: str | os.PathLike[str],
        *,
        retire: bool = True,
        dry_run: bool = False,
        report: Callable[[Changes], None] = lambda changes: None,
    ) -> Changes:
        """Makes the catalogue equal to a file, encoding only what is new or has another text.

        A call that was stopped while it encoded resumes with the same file.

        Args:
          path: path of a .jsonl or .jsonl.gz of all entities.
          retire: whether entities that are not in the file are removed; otherwise they stay.
          dry_run: whether nothing is changed.
          report: function called with what will change, before anything does.

        Raises:
          ElqError: see `add`; two lines have the same id.
        """
        with contextlib.nullcontext() if dry_run else self._lock():
            segments, plan = self.segments(), _Plan()
            catalogue = segments.catalogue
            seen = np.zeros(len(catalogue), bool)
            records = (record for _, record in read_jsonl(path))
            for new, present in self._compared(catalogue, records, os.fspath(path)):
                for number, entity in new:
                    before = present.get(entity["id"])
                    if before is None:
                        plan.add(entity)
                        continue
                    is_first, seen[before.row] = not seen[before.row], True
                    if _is_same(entity, before):
                        plan.changes.unchanged += is_first
                    elif is_first:
                        plan.gone.append(before.row)
                        plan.add(entity, before)
                    else:
                        message = f"the id {entity['id']!r} is there twice; give each its own"
                        raise DataError(message, path, number)
            _check_once(plan.new, path)
            if retire:
                for rows, _ in catalogue.living_batches():
                    missing = rows[~seen[rows]]
                    plan.gone += missing.tolist()
                    plan.changes.removed += catalogue.ids(missing)
            report(plan.changes)
            return plan.changes if dry_run else self._commit(segments, plan)

    def compact(self) -> None:
        """Writes all living entities as one segment, with new rows and with indexes as before.

        Raises:
          ElqError: another process is changing the catalogue, or the disk is full. The catalogue is
            as before then.
        """
        with self._lock():
            segments = self.segments()
            if segments.are_plain:
                return
            folder = self.folder / layout.SEGMENTS / _COMPACTING
            shutil.rmtree(folder, ignore_errors=True)
            make_folder(folder)
            write_compacted(segments, folder)
            self._write_indexes(segments.parts[0].folder, folder)
            self._replace(segments, folder, first=0, deleted=np.zeros(0, np.int64))

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        message = (
            f"{self.folder}: another process or thread is changing its catalogue, so nothing was "
            "changed here; run this again when it has ended"
        )
        with folder_lock(self.folder, message), full_disk(self.folder):
            yield

    def _compared(
        self, catalogue: Catalogue, records: Iterable[Record], source: str
    ) -> Iterator[tuple[list[tuple[int, dict[str, Any]]], dict[str, Entity]]]:
        """Yields entities with their line numbers, and the catalogue's entities by the same ids.

        Of equal lines that follow each other closely, the first is taken.
        """
        for chunk in _chunks(_numbered(records)):
            new: dict[str, tuple[int, dict[str, Any]]] = {}
            for number, record in chunk:
                entity = _with_id(checked_entity(record, source, number))
                other = new.setdefault(entity["id"], (number, entity))[1]
                if other != entity:
                    message = f"the id {entity['id']!r} is there twice; give each its own"
                    raise DataError(message, source, number)
            titles = [entity["title"] for _, entity in new.values()]
            entities = self._all_with(catalogue, [*new], titles)
            yield [*new.values()], {own: found[0] for own, found in entities.items() if found}

    def _all_with(
        self, catalogue: Catalogue, ids: Sequence[str], titles: Sequence[str] | None = None
    ) -> dict[str, list[Entity]]:
        """Returns the entities with each id, in the order of `ids`; see `rows_of_ids`."""
        places, rows = catalogue.rows_of_ids(ids, titles)
        found: dict[str, list[Entity]] = {own: [] for own in ids}
        for place, entity in zip(places.tolist(), catalogue.entities(rows), strict=True):
            found[ids[place]].append(entity)
        return found

    def _commit(self, segments: Segments, plan: _Plan) -> Changes:
        """Makes a planned change, if it is one."""
        if not plan.new and not plan.gone:
            return plan.changes
        if plan.changes.encoded:
            self._check_encoder()
        gone = np.array(sorted(plan.gone), np.int64)
        if not plan.new and len(gone) == segments.catalogue.num_entities:
            raise ElqError(f"{self.folder}: no entity would be left; keep at least one")
        deleted = np.union1d(segments.deleted, gone)
        if not plan.new:
            replace_list(segments, [], len(segments.parts), deleted)
            return plan.changes
        first = _first_merged(segments, len(plan.new))
        folder = self._write_segment(segments, plan, segments.starts[first])
        self._replace(segments, folder, first, deleted)
        return plan.changes

    def _replace(
        self, segments: Segments, folder: pathlib.Path, first: int, deleted: np.ndarray
    ) -> None:
        """Gives a finished segment its name, and puts it in the list in place of others."""
        name = f"{layout.SEGMENTS}/{segments.number + 1:06d}"
        final = self.folder / name
        shutil.rmtree(final, ignore_errors=True)  # of a writer that was killed
        folder.rename(final)
        catalogue = Catalogue.open(final / layout.CATALOGUE)
        replace_list(segments, [(name, catalogue)], first, deleted)

    def _write_segment(self, segments: Segments, plan: _Plan, start: int) -> pathlib.Path:
        """Writes old rows from `start` on and the new ones as a segment; resumes a stopped call.

        Returns:
          the folder, which has no final name yet.
        """
        folder = self.folder / layout.SEGMENTS / UNFINISHED
        columns = {name: [entity[name] for entity in plan.new] for name in SCHEMA.names}
        old = _rows_from(segments.catalogue, start)
        fingerprint = fingerprint_of([*old, new := record_batch(columns)])
        if recorded_catalogue(folder / layout.EMBEDDINGS) != fingerprint:
            shutil.rmtree(folder, ignore_errors=True)
        make_folder(folder)
        write_catalogue(folder / layout.CATALOGUE, [*old, new])
        kept = np.arange(start, len(segments.catalogue))
        sources = np.concatenate([kept, np.array(plan.sources, np.int64)])
        writer = segments.embeddings_writer(folder, len(sources), fingerprint, _SHARD_ROWS)
        missing = writer.missing_shards()
        parts = [slice(*writer.shard_range(shard)) for shard in missing]
        number = sum(int((sources[part] < 0).sum()) for part in parts)
        bar = progress("encoding", number, "entities") if number > _SHARD_ROWS else _no_bar()
        with bar as advance:
            for shard, part in zip(missing, parts, strict=True):
                shape = part.stop - part.start, segments.embeddings.shape[1]
                vectors = np.empty(shape, np.float32)
                is_known = sources[part] >= 0
                vectors[is_known] = segments.embeddings.rows(sources[part][is_known])
                places = np.flatnonzero(~is_known) + part.start - len(kept)
                if len(places):
                    entities = [plan.new[place] for place in places.tolist()]
                    vectors[~is_known] = self._encode(entities)
                    advance(len(entities))
                writer.write_shard(shard, vectors)
        return folder

    def _encode(self, entities: Sequence[Record]) -> np.ndarray:
        size = _FEW if len(entities) <= 2 * _FEW else _MANY
        titles, texts = ([entity[name] for entity in entities] for name in ("title", "text"))
        if size not in self._encoders:
            self._encoders[size] = CatalogueEncoder(self._model, batch_size=size)
        return self._encoders[size].encode(titles, texts)

    @functools.cached_property
    def _model(self) -> Model:
        return Model.open(self.folder, ("entity",))

    def _check_encoder(self) -> None:
        """Raises an ElqError if the linker directory has no entity encoder."""
        try:
            self._model  # noqa: B018
        except DataError as error:
            raise ElqError(
                f"{error}; so nothing new can be encoded. Entities can still be removed, and "
                "updated in everything but title and text"
            ) from error

    def _write_indexes(self, before: pathlib.Path, folder: pathlib.Path) -> None:
        """Makes the indexes of a compacted segment that the segment before it has."""
        catalogue = Catalogue.open(folder / layout.CATALOGUE)
        if (before / layout.NAMES).exists():
            NameIndex.build(catalogue).save(folder / layout.NAMES)
        if (before / layout.WORDS).exists():
            WordIndex.build(catalogue).save(folder / layout.WORDS)
        if is_saved(before / layout.INDEX):
            description = read_description(before / layout.INDEX)
            if not INDEXES.is_known(description.index):
                warnings.warn(
                    f"{before / layout.INDEX}: the index {description.index!r} is not part of "
                    "elq_jax, so it is left out; build it again with build_index",
                    stacklevel=3,
                )
                return
            kind, embeddings = INDEXES.get(description.index), open_segments(folder).embeddings
            settings = kind.settings_of(before / layout.INDEX)
            kind.build(embeddings, settings).save(folder / layout.INDEX)


def _rows_from(catalogue: Catalogue, start: int) -> list[pa.RecordBatch]:
    """Returns the rows of a catalogue from `start` on, where a batch begins."""
    batches, first = [], 0
    for batch in catalogue.batches():
        if first >= start:
            batches.append(batch)
        first += batch.num_rows
    return batches


def _first_merged(segments: Segments, rows: int) -> int:
    """Returns the number of the first segment that is merged with new rows.

    A segment is merged with what follows it if that is as large. So there are at most about
    log2(E) segments, and a row is written so often at most, however small the changes are. The
    first segment stays until the catalogue is compacted.
    """
    first = len(segments.parts)
    while first > 1 and len(segments.parts[first - 1].catalogue) <= rows:
        first -= 1
        rows += len(segments.parts[first].catalogue)
    return first


def _numbered(records: Iterable[Record]) -> Iterator[tuple[int, Record]]:
    if isinstance(records, Mapping):
        raise ElqError("entities: found one mapping; give a list of them")
    for number, record in enumerate(records, 1):
        if not isinstance(record, Mapping):
            kind = type(record).__name__
            raise ElqError(f"entities[{number - 1}]: found {kind}, expected a mapping of fields")
        yield number, record


def _chunks(numbered: Iterator[tuple[int, Record]]) -> Iterator[list[tuple[int, Record]]]:
    while chunk := list(itertools.islice(numbered, _CHUNK)):
        yield chunk


def _with_id(entity: dict[str, Any]) -> dict[str, Any]:
    """Returns the fields of an entity that are kept, with an id."""
    own = entity["id"] or entity["wikidata_id"] or derived_id(entity["title"], entity["text"])
    return {name: entity[name] for name in _FIELDS} | {"id": own}


def _fields(entity: Entity) -> dict[str, Any]:
    values = {name: getattr(entity, name) for name in _FIELDS}
    return values | {"aliases": list(entity.aliases)}


def _is_same(entity: Record, before: Entity) -> bool:
    return all(entity[name] == value for name, value in _fields(before).items())


def _id_of_change(record: Record, source: str, number: int) -> str:
    own = record.get("id") or record.get("wikidata_id")
    if not isinstance(own, str | int) or isinstance(own, bool):
        raise DataError("field 'id': missing; expected the id of the entity", source, number)
    return str(own)


def _check_once(entities: Sequence[Record], path: str | os.PathLike[str]) -> None:
    """Raises a DataError if two new entities have the same id."""
    counts = collections.Counter(entity["id"] for entity in entities)
    [(own, count)] = counts.most_common(1) or [("", 0)]
    if count > 1:
        raise DataError(f"the id {own!r} is there {count} times; give each entity its own", path)


@contextlib.contextmanager
def _no_bar() -> Iterator[Callable[[int], None]]:
    yield lambda count: None
