"""Reads and writes the catalogue of entities: a memory-mapped Arrow file, one row per entity.

Every entity has an id, which stays the same for ever: the one that its file gives, else its
Wikidata id, else one derived from title and text. Rows change when a catalogue is written anew.
"""

from __future__ import annotations

import functools
import hashlib
import mmap
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from elq_jax.core.errors import DataError, ElqError, check_count
from elq_jax.core.strings import is_whole, made_whole
from elq_jax.entities.names import normal_titles, normal_wikidata_id
from elq_jax.storage.files import atomic_write, check_not_a_pointer

_FORMAT = b"elq_jax catalogue 3"
# Older ones, in which there are no ids, and in the first perhaps no checksum.
_WITHOUT_IDS, _WITHOUT_CHECKSUM = b"elq_jax catalogue 2", b"elq_jax catalogue 1"
_HOW_TO = "give a catalogue.arrow made by `python -m elq_jax.encode_entities`"

SCHEMA = pa.schema(
    [
        pa.field("title", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("wikidata_id", pa.string()),
        pa.field("aliases", pa.list_(pa.string()), nullable=False),
        pa.field("id", pa.string()),  # null: derived, see `Catalogue.ids`
    ],
    metadata={b"format": _FORMAT},
)
_OLDER_SCHEMA = SCHEMA.remove(SCHEMA.get_field_index("id"))
_DERIVED_ID, _DERIVED_DTYPE = re.compile(r"e[0-9a-f]{20}"), "S21"

# Files up to this size are checked whole when they are opened, larger ones as they are read.
_CHECKED_AT_ONCE = 256 << 20


@dataclass(frozen=True)
class Entity:
    """One row of a catalogue."""

    row: int
    title: str
    text: str
    wikidata_id: str | None
    aliases: tuple[str, ...]
    id: str


class Matches(NamedTuple):
    """Rows in which values were found.

    Attributes:
      rows: [n] int64, first row that has the value; -1 where no row has it.
      counts: [n] int64, number of rows that have it; a title with more than one is ambiguous.
    """

    rows: np.ndarray
    counts: np.ndarray


class TitleMatches(NamedTuple):
    """Entities whose titles are a text, or begin with it.

    Attributes:
      rows: [n] int64, rows of the best matches: those with the title, then those that begin with
        it, shorter titles first.
      num_exact: number of the first rows that have the title itself.
      count: number of matches in the catalogue, n or more.
    """

    rows: np.ndarray
    num_exact: int
    count: int


class Catalogue:
    """A catalogue of E entities, memory-mapped: opening costs milliseconds and no memory.

    `len(catalogue)` is E, `catalogue[row]` an `Entity`. Rows are counted from 0; in a catalogue
    built without skipping they are the line numbers of the source.

    The file is validated before it is used, so that damage or an attack is an error and not a
    crash: a small file when it is opened, of a large one each batch of rows at its first use.

    A catalogue may also be `joined` of several files, and some of its rows may be deleted. These
    can still be read, but nothing finds them.

    Attributes:
      path: path of the file; of a joined catalogue, of the list of its segments.
      fingerprint: SHA-256 of all titles and texts, in order; of a joined catalogue, of its list.
      deleted: [E] bool, whether a row is deleted; None: none is.
    """

    def __init__(
        self,
        batches: Sequence[_Batch],
        path: pathlib.Path,
        fingerprint: str,
        summary: Mapping[bytes, bytes] | None = None,
        deleted: np.ndarray | None = None,
    ):
        """Wraps an opened file; use `Catalogue.open`."""
        self.path, self.fingerprint, self.deleted = path, fingerprint, deleted
        self._summary = summary or {}
        self._batches = batches
        self._starts = np.cumsum([0, *map(len, batches)])

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Catalogue:
        """Opens a file written by `build_catalogue`.

        Raises:
          ElqError: there is no such file, it is no catalogue, or it is damaged.
        """
        path = pathlib.Path(path)
        if not path.is_file():
            raise ElqError(f"{path}: no such file; {_HOW_TO}")
        check_not_a_pointer(path)
        try:
            # Not `pa.memory_map`, which takes no name that is not UTF-8.
            with open(path, "rb") as file:
                content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            reader = pa.ipc.open_file(pa.py_buffer(content))
            found = (reader.schema.metadata or {}).get(b"format")
            if found not in (_FORMAT, _WITHOUT_IDS, _WITHOUT_CHECKSUM):
                raise ElqError(f"{path}: is an Arrow file, but not a catalogue; {_HOW_TO}")
            if not reader.schema.equals(SCHEMA if found == _FORMAT else _OLDER_SCHEMA):
                raise ElqError(f"{path}: its columns are not those of a catalogue; {_HOW_TO}")
            batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
            for batch in batches:
                batch.validate()
            _, summary = reader.get_batch_with_custom_metadata(reader.num_record_batches - 1)
            summary = summary or {}
            if found != _WITHOUT_CHECKSUM and not {b"sha256", b"bytes"} <= {*summary}:
                raise DataError("its checksum is missing; copy it again, or build it again", path)
            starts = np.cumsum([0, *(batch.num_rows for batch in batches)]).tolist()
            catalogue = cls(
                [_Batch(*each, path) for each in zip(batches, starts, strict=False)],
                path,
                summary[b"fingerprint"].decode("ascii"),
                summary,
            )
        except (pa.ArrowException, OSError, ValueError, KeyError, IndexError) as error:
            if isinstance(error, ElqError):
                raise
            raise ElqError(f"{path}: not a whole Arrow file ({error}); {_HOW_TO}") from error
        if len(content) <= _CHECKED_AT_ONCE:
            catalogue.check_bytes()
            catalogue.validate()
        return catalogue

    @classmethod
    def joined(
        cls,
        parts: Sequence[Catalogue],
        path: pathlib.Path,
        fingerprint: str,
        deleted: np.ndarray | None = None,
    ) -> Catalogue:
        """Joins opened catalogues: the rows of each follow those of the one before.

        Args:
          parts: catalogues of one file each.
          path: path of the list of them.
          fingerprint: fingerprint of the list.
          deleted: rows [n] int that are deleted.
        """
        catalogue = cls([batch for part in parts for batch in part._batches], path, fingerprint)
        if deleted is not None and len(deleted):
            catalogue.deleted = np.zeros(len(catalogue), bool)
            catalogue.deleted[deleted] = True
        return catalogue

    @property
    def num_entities(self) -> int:
        """Returns the number of entities that are not deleted."""
        return len(self) - (0 if self.deleted is None else int(self.deleted.sum()))

    def validate(self) -> None:
        """Checks that every value can be read.

        Raises:
          DataError: the file is damaged.
        """
        for _ in self.batches():
            pass

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yields all rows in order, deleted ones too, validated, in the batches of the file.

        Raises:
          DataError: the file is damaged.
        """
        for batch in self._batches:
            columns = [batch.column(name) for name in SCHEMA.names]
            if len(batch):
                yield pa.record_batch(columns, schema=SCHEMA)

    def living_batches(self) -> Iterator[tuple[np.ndarray, pa.RecordBatch]]:
        """Yields the rows that are not deleted: their numbers [n] int64, and the rows as a batch.

        Raises:
          DataError: the file is damaged.
        """
        start = 0
        for batch in self.batches():
            rows = np.arange(start, start + batch.num_rows)
            living = self.are_living(rows)
            yield rows[living], batch if living.all() else batch.filter(pa.array(living))
            start += batch.num_rows

    def check_bytes(self) -> bool:
        """Compares the bytes of the rows with the checksum at the end of the file.

        Returns:
          whether there is one; catalogues of older versions have none.

        Raises:
          DataError: they differ.
        """
        if b"sha256" not in self._summary:
            return False
        try:
            size = int(self._summary[b"bytes"])
            with open(self.path, "rb") as file:
                content = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
        except (ValueError, KeyError, OverflowError) as error:
            raise DataError(f"its checksum cannot be read ({error})", self.path) from error
        digest = hashlib.sha256(content).hexdigest()
        if digest.encode() != self._summary[b"sha256"]:
            raise DataError(
                f"damaged: the SHA-256 of its rows is {digest}, expected "
                f"{self._summary[b'sha256'].decode('ascii', 'replace')}; copy it again, or build "
                "it again",
                self.path,
            )
        return True

    def check_fingerprint(self) -> None:
        """Compares all titles and texts with the fingerprint that is kept in the file.

        Raises:
          DataError: they differ.
        """
        fingerprint = Fingerprint()
        for batch in self.batches():
            columns = (batch.column(name).to_pylist() for name in ("title", "text"))
            for title, text in zip(*columns, strict=True):
                fingerprint.update(title, text)
        if fingerprint.hexdigest() != self.fingerprint:
            raise DataError(
                f"damaged: its fingerprint is {fingerprint.hexdigest()}, expected "
                f"{self.fingerprint}; copy it again, or build it again",
                self.path,
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Copies the file to `path`."""
        with open(self.path, "rb") as source, atomic_write(path) as target:
            shutil.copyfileobj(source, target, 1 << 20)

    def __reduce__(self):
        return Catalogue.open, (self.path,)

    def __repr__(self) -> str:
        return f"Catalogue({str(self.path)!r}, {len(self):,} entities)"

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, row: int) -> Entity:
        """Reads the entity of a row; IndexError unless 0 <= row < E."""
        [entity] = self.entities([row])
        return entity

    def entities(self, rows: Sequence[int] | np.ndarray) -> list[Entity]:
        """Reads the entities of rows, in the order of `rows`; IndexError unless 0 <= row < E."""
        columns = (self.titles, self.texts, self.wikidata_ids, self.aliases, self.ids)
        return [
            Entity(int(row), title, text, wikidata_id, tuple(aliases), own)
            for row, title, text, wikidata_id, aliases, own in zip(
                rows, *(column(rows) for column in columns), strict=True
            )
        ]

    def titles(self, rows: Sequence[int] | np.ndarray) -> list[str]:
        """Reads the titles of rows, in the order of `rows`; IndexError unless 0 <= row < E."""
        return self._values("title", rows)

    def texts(self, rows: Sequence[int] | np.ndarray) -> list[str]:
        """Reads the descriptions of rows ("" for none); IndexError unless 0 <= row < E."""
        return self._values("text", rows)

    def wikidata_ids(self, rows: Sequence[int] | np.ndarray) -> list[str | None]:
        """Reads the Wikidata ids of rows, None where unknown; IndexError unless 0 <= row < E."""
        return self._values("wikidata_id", rows)

    def aliases(self, rows: Sequence[int] | np.ndarray) -> list[list[str]]:
        """Reads other names of the entities of rows; IndexError unless 0 <= row < E."""
        return self._values("aliases", rows)

    def ids(self, rows: Sequence[int] | np.ndarray) -> list[str]:
        """Reads the ids of the entities of rows; IndexError unless 0 <= row < E.

        An id is the one that the file gives, else the Wikidata id, else `derived_id`.
        """
        ids = [
            own or wikidata_id
            for own, wikidata_id in zip(
                self._values("id", rows), self.wikidata_ids(rows), strict=True
            )
        ]
        if without := [place for place, value in enumerate(ids) if value is None]:
            others = np.asarray(rows)[without]
            contents = zip(self.titles(others), self.texts(others), strict=True)
            for place, content in zip(without, contents, strict=True):
                ids[place] = derived_id(*content)
        return ids

    def rows_of_ids(
        self, ids: Sequence[str], titles: Sequence[str] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Finds the entities with each id, in one pass over all that are not deleted.

        In catalogues that were built without ids, several entities may have the same Wikidata id,
        and then the same id.

        Args:
          ids: n different ids.
          titles: titles of the entities; None if they are not known, and then the first call
            derives all ids of the catalogue, which takes longer.

        Returns:
          places [m] int64 in `ids`, and the row [m] int64 of an entity with that id each; by row.
        """
        ranks = {value: rank for rank, value in enumerate(_checked(ids, "ids"))}
        if len(ranks) < len(ids):
            raise ElqError("ids: one is there twice; expected each once")
        derived = {value: rank for value, rank in ranks.items() if _DERIVED_ID.fullmatch(value)}
        if titles is not None:
            titles = [titles[rank] for rank in derived.values()]
        places, rows = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        values = pa.array([value if is_whole(value) else None for value in ranks], pa.string())
        for batch, start in zip(self._batches, self._starts.tolist(), strict=False):
            match = pc.index_in(batch.given_ids(), value_set=values, skip_nulls=True)
            places.append(match.drop_null().to_numpy().astype(np.int64))
            rows.append(start + np.flatnonzero(match.is_valid().to_numpy(zero_copy_only=False)))
            if derived:
                local, own = batch.derived_ids(derived, titles)
                places.append(np.array([derived[value] for value in own], np.int64))
                rows.append(start + local)
        place, row = np.concatenate(places), np.concatenate(rows)
        living = np.flatnonzero(self.are_living(row))
        order = living[np.argsort(row[living], kind="stable")]
        return place[order], row[order]

    def find_ids(self, ids: Sequence[str | None], *, normalised: bool = False) -> Matches:
        """Finds entities by their ids; None is not looked for.

        Args:
          ids: n ids.
          normalised: argument without effect, since an id has one form only.
        """
        del normalised
        known = [*dict.fromkeys(value for value in ids if value)]
        numbers = {value: number for number, value in enumerate(known)}
        places, rows = self.rows_of_ids(known)
        first, counts = np.full(len(known) + 1, -1), np.zeros(len(known) + 1, np.int64)
        np.add.at(counts, places, 1)
        first[places[::-1]] = rows[::-1]
        own = np.array([numbers.get(value, -1) for value in ids], np.int64)  # The last one is none.
        return Matches(first[own], counts[own])

    def are_living(self, rows: np.ndarray) -> np.ndarray:
        """Returns whether rows [n] are not deleted, [n] bool."""
        return np.ones(len(rows), bool) if self.deleted is None else ~self.deleted[rows]

    def rows_of_titles(self, titles: Sequence[str | None]) -> np.ndarray:
        """Finds the first row with exactly each title, int64 [len(titles)]; -1 for none."""
        return self.find_titles(titles).rows

    def rows_of_wikidata_ids(self, wikidata_ids: Sequence[str | None]) -> np.ndarray:
        """Finds the first row with each Wikidata id, int64 [len(wikidata_ids)]; -1 for none."""
        return self.find_wikidata_ids(wikidata_ids).rows

    def find_titles(self, titles: Sequence[str | None], *, normalised: bool = False) -> Matches:
        """Finds entities by their titles, in one pass over all of them.

        Args:
          titles: n titles; None and "" are not looked for.
          normalised: whether titles count as equal that differ in Unicode normal form, in
            underscores for blanks, in blanks or in the case of the first letter only; see
            `names.normal_titles`. This takes several times as long.

        Raises:
          ElqError: `titles` is one string, or holds something else than strings and None.
        """
        wanted = _checked(titles, "titles")
        if not normalised:
            return self._find("title", wanted)
        known = [title if title and is_whole(title) else None for title in wanted]
        return self._find(
            "title", normal_titles(pa.array(known, pa.string())).to_pylist(), normal_titles
        )

    def search_titles(self, title: str, limit: int = 10) -> TitleMatches:
        """Finds entities by their title or its beginning, in one pass over all titles.

        Titles that differ in case only, or in underscores for blanks, count as equal; a title that
        is written exactly as asked comes first. 200,000 titles take about 25 ms.

        Args:
          title: title, or its first letters.
          limit: largest n.

        Raises:
          ElqError: `title` is no string, or has no letter.
        """
        check_count("limit", limit)
        if not isinstance(title, str) or not title.strip(" _\t\r\n"):
            raise ElqError(f"title: {title!r}; expected a title, or its first letters")
        title = made_whole(title)
        [beginning] = _folded(normal_titles(pa.array([title]))).to_pylist()
        rows, sizes, ranks = [], [], []
        for batch, start in zip(self._batches, self._starts.tolist(), strict=False):
            titles = batch.column("title")
            folded = _folded(titles)
            places = np.flatnonzero(pc.starts_with(folded, beginning).to_numpy(False))
            places = places[self.are_living(start + places)]
            titles, folded = titles.take(pa.array(places)), folded.take(pa.array(places))
            rows.append(start + places)
            sizes.append(pc.utf8_length(titles).to_numpy(False))
            is_equal = pc.equal(folded, beginning).to_numpy(False).astype(int)
            ranks.append(is_equal + pc.equal(titles, title).to_numpy(False))
        row, size, rank = map(np.concatenate, (rows, sizes, ranks))
        order = np.lexsort((row, size, -rank))[:limit]
        return TitleMatches(row[order], int((rank[order] > 0).sum()), len(row))

    def find_wikidata_ids(
        self, wikidata_ids: Sequence[str | None], *, normalised: bool = False
    ) -> Matches:
        """Finds entities by their Wikidata ids, in one pass over all of them.

        Args:
          wikidata_ids: n ids; None and "" are not looked for.
          normalised: whether "q42" and "https://www.wikidata.org/wiki/Q42" are read as "Q42" too;
            see `names.normal_wikidata_id`.

        Raises:
          ElqError: `wikidata_ids` is one string, or holds something else than strings and None.
        """
        wanted = _checked(wikidata_ids, "wikidata_ids")
        if normalised:
            wanted = [text and normal_wikidata_id(text) for text in wanted]
        return self._find("wikidata_id", wanted)

    def _values(self, column: str, rows: Sequence[int] | np.ndarray) -> list[Any]:
        rows = np.asarray(rows)
        if rows.size == 0:
            return []
        if rows.ndim != 1 or rows.dtype.kind not in "iu":
            raise ElqError(f"rows: found {rows.dtype} {list(rows.shape)}, expected integers [n]")
        if (outside := (rows < 0) | (rows >= len(self))).any():
            raise IndexError(
                f"row {rows[outside][0]} is not in the catalogue (0 to {len(self) - 1})"
            )
        numbers = np.searchsorted(self._starts, rows, side="right") - 1
        values: list[Any] = [None] * len(rows)
        for number in np.unique(numbers).tolist():
            [places] = np.nonzero(numbers == number)
            own = pa.array(rows[places] - self._starts[number])
            cells = self._batches[number].column(column).take(own)
            for place, value in zip(places.tolist(), cells.to_pylist(), strict=True):
                values[place] = value
        return values

    def _find(
        self,
        column: str,
        wanted: Sequence[str | None],
        normalise: Callable[[pa.Array], pa.Array] = lambda values: values,
    ) -> Matches:
        """Finds values of a column, in one pass against a hash table of the wanted values."""
        unique = dict.fromkeys(value for value in wanted if value and is_whole(value))
        ranks = {value: rank for rank, value in enumerate(unique)}
        values = pa.array(ranks, pa.string())
        rows, counts = np.full(len(ranks), -1, np.int64), np.zeros(len(ranks), np.int64)
        batches = zip(self._batches, self._starts.tolist(), strict=False)
        for batch, start in batches if ranks else ():
            matches = pc.index_in(normalise(batch.column(column)), value_set=values)
            places = np.flatnonzero(matches.is_valid().to_numpy(zero_copy_only=False))
            living = self.are_living(start + places)
            places, matches = places[living], matches.drop_null().to_numpy()[living]
            hits, first, times = np.unique(matches, return_index=True, return_counts=True)
            new = rows[hits] < 0
            rows[hits[new]] = start + places[first[new]]
            counts[hits] += times
        chosen = np.array([ranks.get(value, -1) for value in wanted], np.int64)
        if not ranks:
            return Matches(chosen, np.zeros_like(chosen))
        is_known = chosen >= 0
        return Matches(np.where(is_known, rows[chosen], -1), np.where(is_known, counts[chosen], 0))


class _Batch:
    """Rows of a catalogue's file, whose columns are validated at their first use.

    Args:
      batch: rows as they are in the file.
      start: row number, in the file, of the first one.
      path: path of the file.
    """

    def __init__(self, batch: pa.RecordBatch, start: int, path: pathlib.Path):
        self._batch, self._start, self._path = batch, start, path
        self._validated: set[str] = set()

    def __len__(self) -> int:
        return self._batch.num_rows

    def column(self, name: str) -> pa.Array:
        """Returns a column; ids are null in a file that has none.

        Raises:
          DataError: the file is damaged.
        """
        place = SCHEMA.get_field_index(name)
        if place == self._batch.num_columns:
            return pa.nulls(len(self), pa.string())
        column = self._batch.column(place)
        if name not in self._validated:
            try:
                column.validate(full=True)
                missing = column.null_count
                if name == "aliases":
                    column.values.validate(full=True)
                    missing += column.values.null_count
                if not SCHEMA.field(name).nullable and missing:
                    raise pa.ArrowInvalid(f"{missing} values are missing")
            except (pa.ArrowException, UnicodeDecodeError) as error:
                raise DataError(
                    f"damaged: {name} of rows {self._start} to {self._start + len(column) - 1} "
                    f"({error}); copy it again, or build it again",
                    self._path,
                ) from error
            self._validated.add(name)
        return column

    def given_ids(self) -> pa.Array:
        """Returns the ids [n] of the entities, null where they are derived."""
        return pc.coalesce(self.column("id"), self.column("wikidata_id"))

    def derived_ids(
        self, ids: Iterable[str], titles: Sequence[str] | None
    ) -> tuple[np.ndarray, list[str]]:
        """Finds entities by derived ids.

        Args:
          ids: derived ids.
          titles: titles that the entities have; None: any.

        Returns:
          numbers [m] int64 of the rows in this batch, and their ids.
        """
        if titles is None:
            places, own = self._all_derived
        else:
            is_titled = pc.is_in(self.column("title"), value_set=pa.array(titles, pa.string()))
            places = np.flatnonzero(pc.and_(is_titled, self.given_ids().is_null()))
            own = self._derive(places)
        found = np.isin(own, np.array([*ids], _DERIVED_DTYPE))
        return places[found], np.char.decode(own[found]).tolist()

    @functools.cached_property
    def _all_derived(self) -> tuple[np.ndarray, np.ndarray]:
        places = np.flatnonzero(self.given_ids().is_null())
        return places, self._derive(places)

    def _derive(self, places: np.ndarray) -> np.ndarray:
        """Returns the derived ids [n] of rows in this batch."""
        columns = (self.column(name).take(pa.array(places)) for name in ("title", "text"))
        contents = zip(*(column.to_pylist() for column in columns), strict=True)
        return np.array([derived_id(*content) for content in contents], _DERIVED_DTYPE)


class CatalogueWriter:
    """Writes the batches of a catalogue, then its fingerprint and a checksum.

    Args:
      file: open file to write to, from its beginning.
    """

    def __init__(self, file: BinaryIO):
        self._file = _HashingFile(file)
        self._writer = pa.ipc.new_file(self._file, SCHEMA)

    def write(self, batch: pa.RecordBatch) -> None:
        """Appends rows."""
        self._writer.write_batch(batch)

    def finish(self, fingerprint: str) -> None:
        """Ends the file.

        Args:
          fingerprint: SHA-256 of all titles and texts, see `Fingerprint`.
        """
        # What is known only at the end goes with a last batch of no rows: the schema, and its
        # metadata, stand at the front of the file.
        summary = {
            "fingerprint": fingerprint,
            "sha256": self._file.digest.hexdigest(),
            "bytes": str(self._file.size),
        }
        empty = pa.RecordBatch.from_pylist([], SCHEMA)
        self._writer.write_batch(empty, custom_metadata=summary)
        self._writer.close()


class Fingerprint:
    """Computes the SHA-256 of titles and texts, in order."""

    def __init__(self):
        self._digest = hashlib.sha256()

    def update(self, title: str, text: str) -> None:
        """Adds an entity."""
        for value in (title, text):
            data = value.encode()
            self._digest.update(len(data).to_bytes(8, "little") + data)

    def hexdigest(self) -> str:
        """Returns the fingerprint of the entities so far."""
        return self._digest.hexdigest()


def derived_id(title: str, text: str) -> str:
    """Returns the id of an entity that has none: "e" and 80 bits of a SHA-256."""
    content = Fingerprint()
    content.update(title, text)
    return f"e{content.hexdigest()[:20]}"


class _HashingFile:
    """A file for Arrow to write to that keeps a checksum of the bytes."""

    closed = False

    def __init__(self, file: BinaryIO):
        self._file = file
        self.digest, self.size = hashlib.sha256(), 0

    def write(self, data: Any) -> int:
        self.digest.update(data)
        self.size += len(data)
        return self._file.write(data)

    def tell(self) -> int:
        return self.size

    def flush(self) -> None:
        self._file.flush()


def _folded(titles: pa.Array) -> pa.Array:
    """Returns titles in lower case, with blanks for underscores."""
    return pc.utf8_lower(pc.replace_substring(titles, "_", " "))


def _checked(values: Sequence[str | None], argument: str) -> list[str | None]:
    if isinstance(values, str):
        raise ElqError(f"{argument}: found one string; give a list of strings")
    for number, value in enumerate(values):
        if value is not None and not isinstance(value, str):
            kind = type(value).__name__
            raise ElqError(f"{argument}[{number}]: found {kind}, expected a string or None")
    return list(values)
