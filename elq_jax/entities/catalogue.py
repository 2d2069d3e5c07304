"""The entity catalogue: a memory-mapped Arrow file, one row per entity."""

from __future__ import annotations

import os
import pathlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from elq_jax.core.errors import ElqError
from elq_jax.core.strings import is_whole
from elq_jax.storage.files import atomic_write

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


@dataclass(frozen=True)
class Entity:
    """One row of a catalogue."""

    row: int
    title: str
    text: str
    wikidata_id: str | None
    aliases: tuple[str, ...]


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
        unique = dict.fromkeys(value for value in wanted if value and is_whole(value))
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
