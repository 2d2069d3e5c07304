"""Fills in the Wikidata ids of a catalogue from a table of titles."""

from __future__ import annotations

import json
import os
import pathlib

import pyarrow as pa

from elq_jax.core.errors import DataError
from elq_jax.entities.catalogue import SCHEMA, Catalogue, CatalogueWriter
from elq_jax.entities.names import WIKIDATA_ID
from elq_jax.storage.files import atomic_write
from elq_jax.storage.lines import decode_text, open_lines


def fill_wikidata_ids(catalogue: str | os.PathLike[str], table: str | os.PathLike[str]) -> int:
    """Fills in missing Wikidata ids of a catalogue from a table of titles.

    The catalogue is written anew, batch by batch; its fingerprint stays the same. A second call
    changes nothing.

    Args:
      catalogue: path of a catalogue.arrow.
      table: path of a table from titles to ids: a JSON object (.json), or lines `title<TAB>id` (any
        other name; .gz too).

    Returns:
      the number of entities that still have no id.

    Raises:
      ElqError: a file is missing or damaged, or a line of the table has no title and id.
    """
    ids = read_wikidata_ids(table)
    path = pathlib.Path(catalogue)
    opened = Catalogue.open(path)
    missing = 0
    place = SCHEMA.get_field_index("wikidata_id")
    with atomic_write(path) as target:
        writer = CatalogueWriter(target)
        for batch in opened.batches():
            columns = zip(
                batch.column("wikidata_id").to_pylist(),
                batch.column("title").to_pylist(),
                strict=True,
            )
            filled = [wikidata_id or ids.get(title) for wikidata_id, title in columns]
            missing += filled.count(None)
            column = pa.array(filled, pa.string())
            writer.write(batch.set_column(place, SCHEMA.field(place), column))
        writer.finish(opened.fingerprint)
    return missing


def read_wikidata_ids(path: str | os.PathLike[str]) -> dict[str, str]:
    """Reads a table title -> Wikidata id; see `fill_wikidata_ids`.

    Raises:
      DataError: a line is not `title<TAB>id`, or a value is not an id.
    """
    if os.fspath(path).endswith(".json"):
        return _read_json(path)
    ids: dict[str, str] = {}
    with open_lines(path) as lines:
        for line_number, line in lines:
            title, separator, wikidata_id = decode_text(line, path, line_number).partition("\t")
            if not separator:
                message = f"found {line[:60]!r}, expected title<TAB>Wikidata id"
                raise DataError(message, path, line_number)
            ids.setdefault(title, _checked(wikidata_id, path, line_number))
    return ids


def _read_json(path: str | os.PathLike[str]) -> dict[str, str]:
    with open_lines(path) as lines:
        try:
            table = json.loads(b"".join(line for _, line in lines))
        except ValueError as error:
            raise DataError(
                f"not JSON ({error}); give an object title -> Wikidata id", path
            ) from error
    if not isinstance(table, dict):
        message = f"found a {type(table).__name__}, expected an object title -> Wikidata id"
        raise DataError(message, path)
    return {title: _checked(value, path) for title, value in table.items() if value is not None}


def _checked(value: object, path: str | os.PathLike[str], line: int | None = None) -> str:
    """Returns a value that is a Wikidata id; raises a DataError for any other."""
    if not isinstance(value, str) or not WIKIDATA_ID.fullmatch(value):
        raise DataError(f'found {value!r}, expected a Wikidata id such as "Q42"', path, line)
    return value
