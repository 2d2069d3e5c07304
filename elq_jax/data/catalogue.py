"""The entity catalogue: a memory-mapped Arrow file, one row per entity."""

from __future__ import annotations

import array
import hashlib
import json
import os
import pathlib
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Literal, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from elq_jax.data.files import atomic_write, open_source, parse_object, read_lines
from elq_jax.data.progress import progress
from elq_jax.errors import DataError, ElqError

_FORMAT = b"elq_jax catalogue 1"
_SCHEMA = pa.schema(
    [
        pa.field("title", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("wikidata_id", pa.string()),
        pa.field("aliases", pa.list_(pa.string()), nullable=False),
    ],
    metadata={b"format": _FORMAT},
)
_ROWS_PER_BATCH = 32768
_WIKIDATA_ID = re.compile(r"Q[1-9]\d*", re.ASCII)
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Entity:
    """One row of a catalogue."""

    row: int
    title: str
    text: str
    wikidata_id: str | None
    aliases: tuple[str, ...]


@dataclass(frozen=True)
class BuildReport:
    """What `build_catalogue` wrote.

    Attributes:
      rows: number of entities.
      fingerprint: of the catalogue.
      duplicate_titles: rows whose title an earlier row has too.
      empty_texts: rows without a description (they are encoded by their title alone).
      skipped: one message per line left out (`on_error="skip"`). Every row after such a line has
        a row number smaller than its line number says.
    """

    rows: int
    fingerprint: str
    duplicate_titles: int
    empty_texts: int
    skipped: list[str] = field(default_factory=list)


class Catalogue:
    """E entities, read from disk as they are asked for; opening costs milliseconds and no heap.

    `len(catalogue)` is E, `catalogue[row]` an `Entity`. Rows are counted from 0; in a catalogue
    built without skipping they are the line numbers of the source.

    Attributes:
      path: the file.
      fingerprint: SHA-256 of all titles and texts, in order.
    """

    def __init__(self, table: pa.Table, fingerprint: str, path: pathlib.Path):
        """Use `Catalogue.open`."""
        self.path = path
        self.fingerprint = fingerprint
        self._table = table
        lengths = [len(chunk) for chunk in table.column("title").chunks]
        self._chunk_starts = np.cumsum([0, *lengths])

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Catalogue:
        """Opens a file written by `build_catalogue`.

        Raises:
          ElqError: there is no such file, or it is no catalogue.
        """
        path = pathlib.Path(path)
        how_to = "give a catalogue.arrow made by `python -m elq_jax.encode_entities`"
        if not path.is_file():
            raise ElqError(f"{path}: no such file; {how_to}")
        try:
            reader = pa.ipc.open_file(pa.memory_map(str(path)))
            if (reader.schema.metadata or {}).get(b"format") != _FORMAT:
                raise ElqError(f"{path}: an Arrow file, but not a catalogue; {how_to}")
            _, summary = reader.get_batch_with_custom_metadata(reader.num_record_batches - 1)
            table = reader.read_all()
        except (pa.ArrowInvalid, OSError) as error:
            raise ElqError(f"{path}: not a whole Arrow file ({error}); {how_to}") from error
        return cls(table, summary[b"fingerprint"].decode(), path)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Copies the file to `path`."""
        with open(self.path, "rb") as source, atomic_write(path) as target:
            shutil.copyfileobj(source, target, 1 << 20)

    def __reduce__(self):
        return Catalogue.open, (self.path,)

    def __repr__(self) -> str:
        return f"Catalogue({str(self.path)!r}, {len(self):,} entities)"

    def __len__(self) -> int:
        return self._table.num_rows

    def __getitem__(self, row: int) -> Entity:
        """Entity of a row; IndexError unless 0 <= row < E."""
        columns = (self.titles, self.texts, self.wikidata_ids, self.aliases)
        title, text, wikidata_id, aliases = (column([row])[0] for column in columns)
        return Entity(int(row), title, text, wikidata_id, tuple(aliases))

    def titles(self, rows: Sequence[int] | np.ndarray) -> list[str]:
        """Titles of rows, in the order asked; IndexError unless 0 <= row < E."""
        return self._values("title", rows)

    def texts(self, rows: Sequence[int] | np.ndarray) -> list[str]:
        """Descriptions of rows ("" if there is none); IndexError unless 0 <= row < E."""
        return self._values("text", rows)

    def wikidata_ids(self, rows: Sequence[int] | np.ndarray) -> list[str | None]:
        """Wikidata ids of rows, None where unknown; IndexError unless 0 <= row < E."""
        return self._values("wikidata_id", rows)

    def aliases(self, rows: Sequence[int] | np.ndarray) -> list[list[str]]:
        """Other names of the entities of rows; IndexError unless 0 <= row < E."""
        return self._values("aliases", rows)

    def rows_of_titles(self, titles: Sequence[str | None]) -> np.ndarray:
        """First row that has exactly this title, int64 [len(titles)]; -1 where none has."""
        return self._find("title", titles)

    def rows_of_wikidata_ids(self, wikidata_ids: Sequence[str | None]) -> np.ndarray:
        """First row that has this Wikidata id, int64 [len(wikidata_ids)]; -1 where none has."""
        return self._find("wikidata_id", wikidata_ids)

    def _values(self, column: str, rows: Sequence[int] | np.ndarray) -> list[Any]:
        rows = np.asarray(rows)
        if rows.size == 0:
            return []
        if rows.ndim != 1 or rows.dtype.kind not in "iu":
            raise ElqError(f"rows: found {rows.dtype} {list(rows.shape)}, expected integers [n]")
        if (outside := (rows < 0) | (rows >= len(self))).any():
            found = rows[outside][0]
            raise IndexError(f"row {found} is not in the catalogue (0 to {len(self) - 1})")
        chunks = self._table.column(column).chunks
        # `ChunkedArray.take` may join all chunks (gigabytes) first.
        numbers = np.searchsorted(self._chunk_starts, rows, side="right") - 1
        places = rows - self._chunk_starts[numbers]
        return [
            chunks[number][place].as_py()
            for number, place in zip(numbers.tolist(), places.tolist(), strict=True)
        ]

    def _find(self, column: str, wanted: Sequence[str | None]) -> np.ndarray:
        """One pass over the column against a hash table of what is wanted; first row wins."""
        unique = dict.fromkeys(value for value in wanted if value and not _SURROGATE.search(value))
        ranks = {value: rank for rank, value in enumerate(unique)}
        values = pa.array(ranks, pa.string())
        found = np.full(len(ranks), -1, np.int64)
        for start, chunk in zip(
            self._chunk_starts, self._table.column(column).chunks, strict=False
        ):
            matches = pc.index_in(chunk, value_set=values)
            places = np.flatnonzero(matches.is_valid().to_numpy(zero_copy_only=False))
            hits, first = np.unique(matches.drop_null().to_numpy(), return_index=True)
            new = found[hits] < 0
            found[hits[new]] = start + places[first[new]]
        return np.array([found[ranks[v]] if v in ranks else -1 for v in wanted], np.int64)


def build_catalogue(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    on_error: Literal["stop", "skip"] = "stop",
) -> BuildReport:
    """Converts a .jsonl or .jsonl.gz file to a catalogue, in bounded memory; progress on stderr.

    Each line is an object with `title` and `text` (may be ""), and optionally `wikidata_id` (or
    `kb_idx`, taken if it looks like one) and `aliases` (a list); other fields are ignored, so the
    published entity.jsonl of ELQ is read as it is. Row numbers are line numbers from 0.

    Args:
      source: the file to read.
      output: the file to write, usually `catalogue.arrow`; it appears when it is whole.
      on_error: what to do with a line that cannot be used: "stop", or "skip" and report it.

    Raises:
      DataError: a line cannot be used (`on_error="stop"`), the file has none that can, or is a
        damaged gzip file.
      ElqError: there is no such file, or the disk is full.
    """
    if on_error not in ("stop", "skip"):
        raise ElqError(f"on_error is {on_error!r}, expected 'stop' or 'skip'")
    skipped: list[str] = []
    digest = hashlib.sha256()
    title_hashes = array.array("q")  # 8 bytes an entity
    empty_texts = 0
    columns: dict[str, list] = {name: [] for name in _SCHEMA.names}
    read = 0

    with (
        open_source(source) as file,
        progress("catalogue", os.path.getsize(source), "bytes") as advance,
        atomic_write(output) as target,
        pa.ipc.new_file(target, _SCHEMA) as writer,
    ):
        for entity in _read_entities(file, source, on_error, skipped):
            for name, values in columns.items():
                values.append(entity[name])
            for value in (entity["title"], entity["text"]):
                data = value.encode()
                digest.update(len(data).to_bytes(8, "little") + data)
            title_hashes.append(hash(entity["title"]))
            empty_texts += not entity["text"]
            if len(columns["title"]) == _ROWS_PER_BATCH:
                writer.write_batch(_record_batch(columns))
                advance(file.tell() - read)
                read = file.tell()
        advance(file.tell() - read)
        rows = len(title_hashes)
        if not rows:
            found = f"{len(skipped)} lines that cannot be used" if skipped else "an empty file"
            message = f"found {found}, expected one entity a line" + "".join(
                f"\n  {line}" for line in skipped[:3]
            )
            raise DataError(message, source)
        if columns["title"]:
            writer.write_batch(_record_batch(columns))
        # What is known only at the end goes with a last batch of no rows: the schema, and its
        # metadata, stand at the front of the file.
        summary = {"fingerprint": digest.hexdigest()}
        writer.write_batch(_record_batch(columns), custom_metadata=summary)
    return BuildReport(
        rows=rows,
        fingerprint=digest.hexdigest(),
        duplicate_titles=rows - len(np.unique(np.frombuffer(title_hashes, np.int64))),
        empty_texts=empty_texts,
        skipped=skipped,
    )


def _record_batch(columns: dict[str, list]) -> pa.RecordBatch:
    """The rows collected so far; empties `columns`."""
    batch = pa.record_batch(
        [pa.array(columns[field.name], field.type) for field in _SCHEMA], schema=_SCHEMA
    )
    for values in columns.values():
        values.clear()
    return batch


def _read_entities(
    file: BinaryIO, source: str | os.PathLike[str], on_error: str, skipped: list[str]
) -> Iterator[dict[str, Any]]:
    """Yields the entities of a file; adds a message to `skipped` for each line left out."""

    def leave_out(error: DataError) -> None:
        if on_error == "stop":
            raise error
        skipped.append(str(error))

    expected = 1
    for line_number, line in read_lines(file, source):
        for blank in range(expected, line_number):
            message = "blank line; rows are counted by lines, so remove it"
            leave_out(DataError(message, source, blank))
        expected = line_number + 1
        try:
            entity = _parse_entity(line, source, line_number)
        except DataError as error:
            leave_out(error)
        else:
            yield entity


def _parse_entity(line: bytes, source: str | os.PathLike[str], line_number: int) -> dict[str, Any]:
    record = parse_object(line, source, line_number)

    def fail(name: str, expected: str) -> NoReturn:
        found = f"found {json.dumps(record[name])[:60]}" if name in record else "missing"
        raise DataError(f"field {name!r}: {found}, expected {expected}", source, line_number)

    title, text = record.get("title"), record.get("text")
    if not isinstance(title, str) or not title.strip():
        fail("title", "a string that is not blank")
    if not isinstance(text, str):
        fail("text", 'a string ("" if there is no description)')
    wikidata_id = record.get("wikidata_id")
    if wikidata_id is None:
        other = record.get("kb_idx")
        wikidata_id = other if isinstance(other, str) and _WIKIDATA_ID.fullmatch(other) else None
    elif not isinstance(wikidata_id, str) or not _WIKIDATA_ID.fullmatch(wikidata_id):
        fail("wikidata_id", 'an id such as "Q42", or null')
    aliases = record.get("aliases") or []
    if not isinstance(aliases, list) or not all(isinstance(alias, str) for alias in aliases):
        fail("aliases", "a list of strings")
    if _SURROGATE.search("".join((title, text, *aliases))):
        message = "half of a surrogate pair (\\ud800 to \\udfff) in a string; remove it"
        raise DataError(message, source, line_number)
    return {"title": title, "text": text, "wikidata_id": wikidata_id, "aliases": aliases}
