"""Builds a catalogue from a file of entities."""

from __future__ import annotations

import array
import json
import os
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn

import numpy as np
import pyarrow as pa

from elq_jax.core.errors import DataError, ElqError
from elq_jax.core.strings import check_whole
from elq_jax.entities.catalogue import SCHEMA, Catalogue, CatalogueWriter, Fingerprint
from elq_jax.entities.embeddings import recorded_catalogue
from elq_jax.entities.names import WIKIDATA_ID
from elq_jax.storage.files import atomic_write, is_stream
from elq_jax.storage.layout import CATALOGUE, EMBEDDINGS
from elq_jax.storage.lines import LineReader, open_lines, parse_object
from elq_jax.storage.progress import progress
from elq_jax.storage.resume import ResumeRecord

ROWS_PER_BATCH = 32768
BYTES_PER_BATCH = 64 << 20  # of strings; an Arrow batch can hold 2 GiB
_BYTES_PER_ROW = 256 << 20


@dataclass(frozen=True)
class BuildReport:
    """Counts of a catalogue that `build_catalogue` wrote.

    Attributes:
      rows: number of entities.
      fingerprint: fingerprint of the catalogue.
      duplicate_titles: number of rows whose title an earlier row has too.
      empty_texts: number of rows without a description (encoded by their title alone).
      skipped: messages, one per line left out (`on_error="skip"`). After such a line, row numbers
        are smaller than line numbers.
    """

    rows: int
    fingerprint: str
    duplicate_titles: int
    empty_texts: int
    skipped: list[str] = field(default_factory=list)


def build_catalogue(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    on_error: Literal["stop", "skip"] = "stop",
) -> BuildReport:
    """Converts a .jsonl or .jsonl.gz file to a catalogue, in bounded memory; progress on stderr.

    Each line is an object with `title` and `text` (may be ""), and optionally `wikidata_id` (or
    `kb_idx`, taken if it looks like one), `aliases` (a list) and `id`; other fields are ignored, so
    the published entity.jsonl of ELQ can be read unchanged. Row numbers are line numbers from 0.
    An `id` is of one entity only; `Catalogue.ids` says what entities without one have.

    Args:
      source: path of the file to read.
      output: path of the file to write, usually `catalogue.arrow`; it appears when it is whole.
      on_error: action at a line that cannot be used: "stop", or "skip" and report it.

    Raises:
      DataError: a line cannot be used (`on_error="stop"`), no line of the file can be used, two
        have the same `id`, or it is a damaged gzip file.
      ElqError: there is no such file, or the disk is full.
    """
    return _build(source, output, on_error, lambda fingerprint: None)


def _build(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    on_error: str,
    check: Callable[[str], None],
) -> BuildReport:
    """Builds a catalogue; `check` gets the fingerprint before the file gets its name."""
    if on_error not in ("stop", "skip"):
        raise ElqError(f"on_error: {on_error!r}; expected 'stop' or 'skip'")
    skipped: list[str] = []
    fingerprint = Fingerprint()
    title_hashes = array.array("q")  # 8 bytes an entity
    id_hashes = array.array("q")  # of entities that the file gives an id
    empty_texts = 0
    columns: dict[str, list] = {name: [] for name in SCHEMA.names}
    read = collected = 0

    with (
        open_lines(source) as lines,
        progress("catalogue", lines.size, "bytes") as advance,
        atomic_write(output) as target,
    ):
        writer = CatalogueWriter(target)
        for entity in _read_entities(lines, on_error, skipped):
            for name, values in columns.items():
                values.append(entity[name])
            fingerprint.update(entity["title"], entity["text"])
            title_hashes.append(hash(entity["title"]))
            if entity["id"] is not None:
                id_hashes.append(hash(entity["id"]))
            empty_texts += not entity["text"]
            collected += entity["size"]
            if len(columns["title"]) == ROWS_PER_BATCH or collected >= BYTES_PER_BATCH:
                writer.write(record_batch(columns))
                collected = 0
                advance(lines.position - read)
                read = lines.position
        advance(lines.position - read)
        rows = len(title_hashes)
        if not rows:
            found = f"{len(skipped)} lines that cannot be used" if skipped else "an empty file"
            message = f"found {found}, expected one entity a line" + "".join(
                f"\n  {line}" for line in skipped[:3]
            )
            raise DataError(message, source)
        if twice := len(id_hashes) - len(np.unique(np.frombuffer(id_hashes, np.int64))):
            message = f'{twice:,} values of "id" are there before; give every entity its own'
            raise DataError(message, source)
        if columns["title"]:
            writer.write(record_batch(columns))
        writer.finish(fingerprint.hexdigest())
        check(fingerprint.hexdigest())
    return BuildReport(
        rows=rows,
        fingerprint=fingerprint.hexdigest(),
        duplicate_titles=rows - len(np.unique(np.frombuffer(title_hashes, np.int64))),
        empty_texts=empty_texts,
        skipped=skipped,
    )


def record_batch(columns: dict[str, list]) -> pa.RecordBatch:
    """Returns rows, given as a list of values for each column of `SCHEMA`; empties the lists."""
    batch = pa.record_batch(
        [pa.array(columns[field.name], field.type) for field in SCHEMA], schema=SCHEMA
    )
    for values in columns.values():
        values.clear()
    return batch


def _read_entities(
    lines: LineReader, on_error: str, skipped: list[str]
) -> Iterator[dict[str, Any]]:
    """Yields the entities of a file; adds a message to `skipped` for each line left out."""

    def leave_out(error: DataError) -> None:
        if on_error == "stop":
            raise error
        skipped.append(str(error))

    expected = 1
    for line_number, line in lines:
        for blank in range(expected, line_number):
            message = "blank line, expected an entity (row numbers are line numbers); remove it"
            leave_out(DataError(message, lines.name, blank))
        expected = line_number + 1
        try:
            entity = _parse_entity(line, lines.name, line_number)
        except DataError as error:
            leave_out(error)
        else:
            yield entity


def _parse_entity(line: bytes, source: str | os.PathLike[str], line_number: int) -> dict[str, Any]:
    return checked_entity(parse_object(line, source, line_number), source, line_number)


def checked_entity(
    record: Mapping[str, Any], source: str | os.PathLike[str], line_number: int
) -> dict[str, Any]:
    """Checks the fields of an entity.

    Args:
      record: entity as `build_catalogue` reads it; other fields are ignored.
      source: name of the file that it is in, for messages.
      line_number: number of its line.

    Returns:
      the fields of `SCHEMA`, and `size`, its bytes.

    Raises:
      DataError: a field is missing, or of the wrong kind.
    """

    def fail(name: str, expected: str) -> NoReturn:
        found = f"found {json.dumps(record[name])[:60]}" if name in record else "missing"
        raise DataError(f"field {name!r}: {found}, expected {expected}", source, line_number)

    title, text = record.get("title"), record.get("text")
    if not isinstance(title, str) or not title.strip():
        fail("title", "a string that is not blank")
    if not isinstance(text, str):
        fail("text", 'a string ("" if there is no description)')
    wikidata_id = record.get("wikidata_id")
    if wikidata_id in (None, ""):
        other = record.get("kb_idx")
        wikidata_id = other if isinstance(other, str) and WIKIDATA_ID.fullmatch(other) else None
    elif not isinstance(wikidata_id, str) or not WIKIDATA_ID.fullmatch(wikidata_id):
        fail("wikidata_id", 'an id such as "Q42", or null')
    aliases = record.get("aliases")
    if aliases in (None, ""):
        aliases = []
    if not isinstance(aliases, list) or not all(isinstance(alias, str) for alias in aliases):
        fail("aliases", "a list of strings")
    own = record.get("id")
    if isinstance(own, int) and not isinstance(own, bool):
        own = str(own)
    elif own is not None and (not isinstance(own, str) or not own.strip()):
        fail("id", 'a string that is not blank such as "product-17", or a whole number')
    try:
        check_whole("title, text, aliases or id", title, text, *aliases, own or "")
    except ElqError as error:
        raise DataError(str(error), source, line_number) from error
    size = sum(len(value.encode()) for value in (title, text, *aliases))
    if size > _BYTES_PER_ROW:
        message = (
            f"an entity of {size:,} bytes; expected at most {_BYTES_PER_ROW:,}, of which only the "
            "first 100 words or so count; shorten its text"
        )
        raise DataError(message, source, line_number)
    return {
        "title": title,
        "text": text,
        "wikidata_id": wikidata_id,
        "aliases": aliases,
        "id": own,
        "size": size,
    }


def open_or_build_catalogue(
    source: str | os.PathLike[str], path: str | os.PathLike[str], on_error: str = "stop"
) -> Catalogue:
    """Opens the catalogue at `path`; first builds it unless it was built from `source` before.

    Args:
      source: path of JSON lines (gzip or not; a pipe is read every time), or of a catalogue.arrow,
        which is copied.
      path: path of the built catalogue.arrow; a record of its source is written beside it.
      on_error: action as for `build_catalogue`; skipped lines are reported on stderr.

    Raises:
      ElqError: there is no such file, it is not a catalogue, `path` is something else than a
        catalogue, or embeddings beside it are of another one. Nothing is changed then.
    """
    source, path = pathlib.Path(source), pathlib.Path(path)
    if source.is_dir():
        raise ElqError(f"{source}: is a folder; give a file of entities, such as {CATALOGUE}")
    if is_stream(path):  # or a folder, which it refuses
        raise ElqError(f"{path}: a pipe or device; give another folder, or remove it")
    if path.is_file() and not _has_arrow_header(path):
        raise ElqError(f"{path}: exists and is not a catalogue; give another folder, or remove it")
    if _is_read_as_arrow(source):
        catalogue = Catalogue.open(source)
        if not (path.exists() and path.samefile(source)):
            _check_embeddings_beside(path, catalogue.fingerprint, source)
            catalogue.save(path)
        return Catalogue.open(path)
    if not source.exists():
        raise ElqError(f"{source}: no such file; give a .jsonl, .jsonl.gz or catalogue.arrow")
    can_be_read_again = source.is_file()  # not a pipe
    record = ResumeRecord(source_note(path), {"source": source, "on_error": on_error})
    if can_be_read_again and path.exists() and record.is_same():
        return Catalogue.open(path)

    def check(fingerprint: str) -> None:
        _check_embeddings_beside(path, fingerprint, source)
        record.remove()  # A catalogue that is there without its record is built again.

    report = _build(source, path, on_error, check)
    if can_be_read_again:
        record.write()
    for message in report.skipped:
        print(f"left out: {message}", file=sys.stderr)
    print(
        f"{path}: {report.rows:,} entities, {report.duplicate_titles:,} with the title of an "
        f"earlier one, {report.empty_texts:,} without text, {len(report.skipped):,} left out",
        file=sys.stderr,
    )
    return Catalogue.open(path)


def _is_read_as_arrow(path: pathlib.Path) -> bool:
    """Returns whether a file is opened as Arrow, because of its first bytes or of its name."""
    if path.suffix.lower() == ".arrow":
        return True
    if not path.is_file():  # Bytes read from a pipe cannot be read again.
        return False
    return _has_arrow_header(path)


def _has_arrow_header(path: pathlib.Path) -> bool:
    with open(path, "rb") as file:
        return file.read(6) == b"ARROW1"


def _check_embeddings_beside(path: pathlib.Path, fingerprint: str, source: pathlib.Path) -> None:
    folder = path.with_name(EMBEDDINGS)
    if recorded_catalogue(folder) not in (None, fingerprint):
        raise ElqError(
            f"{folder}: holds the embeddings of another catalogue than {source}; give another "
            f"folder, or remove {folder} first"
        )


def source_note(path: pathlib.Path) -> pathlib.Path:
    """Returns the path of the record of what a catalogue.arrow was built from."""
    return path.with_suffix(".source.json")
