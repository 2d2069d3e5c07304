"""Finds entities by their names: memory-mapped arrays of hashes, sorted, beside a catalogue.

A folder holds `names.json` (a description with the checksums of the arrays) and

| file         |               | holds                                                           |
| ------------ | ------------- | --------------------------------------------------------------- |
| keys.npy     | uint64 [N]    | hashes of all names, ascending                                  |
| rows.npy     | int32 [N]     | row of the entity that has the name                             |
| kinds.npy    | uint8 [N]     | kind of the name, a place in `KINDS`; ascending within a key    |
| words.npy    | uint16 [W]    | hashes of the words of each title without its qualifier, once   |
| starts.npy   | int64 [E + 1] | place in words.npy where the words of each entity begin         |
| facts.npy    | uint8 [E, 2]  | number of aliases (at most 255); whether there is a qualifier   |

The title "Dune (novel)" is the name "Dune" with the qualifier "novel". Arrays are mapped, not read,
so opening a folder takes milliseconds for any number of entities.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from elq_jax.core.strings import made_whole
from elq_jax.entities.catalogue import Catalogue
from elq_jax.entities.names import QUALIFIED, normal_names
from elq_jax.storage.array_folder import ArrayFolder
from elq_jax.storage.checksums import Sha256

# Kinds of names: the whole title, the title without its qualifier, an alias.
KINDS = ("title", "name", "alias")

FORMAT_VERSION = 1
_AGAIN = (
    "copy the folder again, or make it again in Python: NameIndex.build(Catalogue.open("
    '"catalogue.arrow")).save("names")'
)
_DTYPES = {
    "keys": np.uint64,
    "rows": np.int32,
    "kinds": np.uint8,
    "words": np.uint16,
    "starts": np.int64,
    "facts": np.uint8,
}
MULTIPLIER = 0x9E3779B97F4A7C15  # odd


class Named(NamedTuple):
    """Entities that have a text as a name: m pairs of a text and an entity.

    Attributes:
      texts: [m] int64, number of the text, ascending.
      rows: [m] int32, row of the entity; those of a text in the order of kinds, then of rows.
      kinds: [m] uint8, best kind of the name, a place in `KINDS`.
      counts: [m] int64, number of names in the catalogue that are equal to the text.
    """

    texts: np.ndarray
    rows: np.ndarray
    kinds: np.ndarray
    counts: np.ndarray


class Words(NamedTuple):
    """Different words of n texts or entities, one after the other.

    Attributes:
      owners: [w] int64, number of the text that the word is of, ascending.
      words: [w] uint16, hash of the word, ascending within a text.
    """

    owners: np.ndarray
    words: np.ndarray


class NameIndex:
    """The names of all E entities of a catalogue; `len` is E. Made by `build` or `open`.

    Attributes:
      catalogue_fingerprint: fingerprint of the catalogue.
      folder: folder that the index was opened from; None if it was built in memory.
    """

    def __init__(
        self,
        arrays: Mapping[str, np.ndarray],
        catalogue_fingerprint: str,
        folder: pathlib.Path | None = None,
    ):
        """Wraps arrays by the names of their files, see the table of this module."""
        self._arrays, self.folder = arrays, folder
        self.catalogue_fingerprint = catalogue_fingerprint

    def __len__(self) -> int:
        return len(self._arrays["facts"])

    @classmethod
    def build(cls, catalogue: Catalogue) -> NameIndex:
        """Makes the index of a catalogue in one pass."""
        names, words, lengths, facts = [], [], [], []
        first = 0
        for batch in catalogue.batches():
            titles, aliases = batch.column("title"), batch.column("aliases")
            plain = pc.replace_substring_regex(titles, QUALIFIED, r"\1")
            names += _names_of(titles, plain, aliases, first)
            title_words = words_of(plain)
            words.append(title_words.words)
            lengths.append(np.bincount(title_words.owners, minlength=len(titles)))
            qualified = _numpy(pc.not_equal(plain, titles))
            alias_counts = np.minimum(_numpy(pc.list_value_length(aliases)), 255)
            facts.append(np.stack([alias_counts, qualified], axis=1))
            first += len(titles)
        keys, rows, kinds = _sorted_names(names)
        arrays = {
            "keys": keys,
            "rows": rows,
            "kinds": kinds,
            "words": np.concatenate(words),
            "starts": np.concatenate([[0], np.cumsum(np.concatenate(lengths))]),
            "facts": np.concatenate(facts),
        }
        arrays = {name: array.astype(_DTYPES[name]) for name, array in arrays.items()}
        return cls(arrays, catalogue.fingerprint)

    def find(self, texts: Sequence[str], limit: int = 32) -> Named:
        """Finds the entities that have texts as names, however these are written.

        Names are compared as `normal_names` writes them, and without blanks: "E.T." is "et".

        Args:
          texts: n texts.
          limit: largest number of names that are read for a text: titles first, then titles
            without their qualifiers, then aliases.
        """
        keys = name_keys(pa.array([made_whole(text) for text in texts], pa.string()))
        owners, rows, kinds, counts = self.names_of(keys, limit)
        # An entity may have a name twice, as title and as alias: its best kind comes first.
        _, unique = np.unique(owners * len(self) + rows, return_index=True)
        unique.sort()
        return Named(owners[unique], rows[unique], kinds[unique], counts[owners[unique]])

    def names_of(self, keys: np.ndarray, limit: int) -> Named:
        """Finds names by their hashes [n] uint64, at most `limit` of each.

        Returns:
          what `find` does, but with every name of an entity, and [n] counts.
        """
        starts = np.searchsorted(self._arrays["keys"], keys, "left")
        counts = np.searchsorted(self._arrays["keys"], keys, "right") - starts
        owners, places = _ranges(starts, np.minimum(counts, limit))
        return Named(owners, self._arrays["rows"][places], self._arrays["kinds"][places], counts)

    def title_words(self, rows: np.ndarray) -> Words:
        """Returns the words of the titles, without qualifiers, of the entities of n rows."""
        starts = self._arrays["starts"][rows]
        owners, places = _ranges(starts, self._arrays["starts"][np.asarray(rows) + 1] - starts)
        return Words(owners, self._arrays["words"][places])

    def alias_counts(self, rows: np.ndarray) -> np.ndarray:
        """Returns the number of aliases of the entities of n rows, [n] uint8, at most 255."""
        return self._arrays["facts"][rows, 0]

    def are_qualified(self, rows: np.ndarray) -> np.ndarray:
        """Returns whether the titles of n rows have a qualifier in parentheses, [n] bool."""
        return self._arrays["facts"][rows, 1] > 0

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes a folder, which appears under its name when it is whole.

        Raises:
          ElqError: `folder` exists and holds something else; the disk is full.
        """
        FILES.save(
            folder,
            self._arrays,
            rows=len(self),
            names=len(self._arrays["keys"]),
            words=len(self._arrays["words"]),
            catalogue_fingerprint=self.catalogue_fingerprint,
        )

    @classmethod
    def open(
        cls, folder: str | os.PathLike[str], catalogue_fingerprint: str | None = None
    ) -> NameIndex:
        """Opens a folder that `save` wrote; small arrays are compared with their checksums.

        Args:
          folder: path of the folder.
          catalogue_fingerprint: fingerprint of the catalogue to expect; None: not checked.

        Raises:
          ElqError: there is no index of names, or it is damaged or of another catalogue.
        """
        folder = pathlib.Path(folder)
        description = FILES.read(folder, catalogue_fingerprint)
        shapes: dict[str, tuple[int, ...]] = {
            **dict.fromkeys(("keys", "rows", "kinds"), (description.names,)),
            "words": (description.words,),
            "starts": (description.rows + 1,),
            "facts": (description.rows, 2),
        }
        return cls(FILES.map(folder, shapes), description.catalogue_fingerprint, folder)


class JoinedNames(NameIndex):
    """Names of a joined catalogue, without those of deleted rows.

    Args:
      parts: names of the catalogues that it is joined of, in their order.
      catalogue_fingerprint: fingerprint of the joined catalogue.
      deleted: [E] bool, whether a row is deleted; None: none is.
    """

    def __init__(
        self,
        parts: Sequence[NameIndex],
        catalogue_fingerprint: str,
        deleted: np.ndarray | None = None,
    ):
        super().__init__({}, catalogue_fingerprint)
        self._parts, self._starts = parts, np.cumsum([0, *map(len, parts)])
        deleted = np.zeros(len(self), bool) if deleted is None else deleted
        masks = np.split(deleted, self._starts[1:-1])
        self._deleted = [mask if mask.any() else None for mask in masks]

    def __len__(self) -> int:
        return int(self._starts[-1])

    def names_of(self, keys: np.ndarray, limit: int) -> Named:
        """Finds names as `NameIndex.names_of` does, those of deleted rows not among them."""
        found, totals = [], np.zeros(len(keys), np.int64)
        for part, start, deleted in zip(self._parts, self._starts, self._deleted, strict=False):
            owners, rows, kinds, counts = part.names_of(keys, limit)
            if deleted is not None:
                if (most := counts.max(initial=0)) > limit:  # Deleted names may be the first.
                    owners, rows, kinds, counts = part.names_of(keys, int(most))
                living = ~deleted[rows]
                owners, rows, kinds = owners[living], rows[living], kinds[living]
                counts = np.bincount(owners, minlength=len(keys))
            found.append((owners, rows + np.int32(start), kinds))
            totals += counts
        owners, rows, kinds = map(np.concatenate, zip(*found, strict=True))
        order = np.lexsort((rows, kinds, owners))
        rank = np.arange(len(order)) - np.searchsorted(owners[order], owners[order])
        order = order[rank < limit]
        return Named(owners[order], rows[order], kinds[order], totals)

    def title_words(self, rows: np.ndarray) -> Words:
        """Returns the words of the titles, without qualifiers, of the entities of n rows."""
        owners, words = [], []
        for places, part, own in self._by_part(rows):
            found = part.title_words(own)
            owners.append(places[found.owners])
            words.append(found.words)
        owner, word = np.concatenate(owners), np.concatenate(words)
        order = np.argsort(owner, kind="stable")
        return Words(owner[order], word[order])

    def alias_counts(self, rows: np.ndarray) -> np.ndarray:
        """Returns the number of aliases of the entities of n rows, [n] uint8, at most 255."""
        counts = np.zeros(len(rows), np.uint8)
        for places, part, own in self._by_part(rows):
            counts[places] = part.alias_counts(own)
        return counts

    def are_qualified(self, rows: np.ndarray) -> np.ndarray:
        """Returns whether the titles of n rows have a qualifier in parentheses, [n] bool."""
        are = np.zeros(len(rows), bool)
        for places, part, own in self._by_part(rows):
            are[places] = part.are_qualified(own)
        return are

    def _by_part(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, NameIndex, np.ndarray]]:
        """Yields places in `rows`, the part that has these rows, and their numbers in it."""
        owner = np.searchsorted(self._starts, rows, "right") - 1
        for number in np.unique(owner).tolist() or [0]:
            [places] = np.nonzero(owner == number)
            yield places, self._parts[number], np.asarray(rows)[places] - self._starts[number]


class Description(msgspec.Struct, frozen=True):
    """The file names.json.

    Attributes:
      format_version: version of the files, `FORMAT_VERSION`.
      rows: E, number of entities.
      names: N, number of names.
      words: W, number of words.
      catalogue_fingerprint: fingerprint of the catalogue whose names these are.
      sha256: checksums of the arrays by the names of their files.
    """

    format_version: int
    rows: Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
    names: Annotated[int, msgspec.Meta(ge=1)]
    words: Annotated[int, msgspec.Meta(ge=0)]
    catalogue_fingerprint: str
    sha256: dict[str, Sha256]


FILES = ArrayFolder("names", "names.json", Description, FORMAT_VERSION, _DTYPES, _AGAIN)


def name_keys(names: pa.Array) -> np.ndarray:
    """Returns the hashes [n] uint64 by which names are looked up; names may be written anyhow."""
    return hash_strings(pc.replace_substring(normal_names(names), " ", ""))


def words_of(names: pa.Array) -> Words:
    """Returns the words of names, as `normal_names` writes them."""
    lists = pc.split_pattern(normal_names(names), " ")
    owners = np.repeat(np.arange(len(names)), _numpy(pc.list_value_length(lists)))
    strings = lists.flatten()
    words = hash_strings(strings)[is_word := _numpy(pc.not_equal(strings, ""))] >> np.uint64(48)
    pairs = np.sort(owners[is_word] << 16 | words.astype(np.int64))
    pairs = pairs[np.diff(pairs, prepend=-1) > 0]
    return Words(pairs >> 16, (pairs & 0xFFFF).astype(np.uint16))


def hash_strings(strings: pa.Array) -> np.ndarray:
    """Hashes strings in NumPy: the same on every machine, and whatever else is hashed.

    Args:
      strings: [n] strings without nulls.

    Returns:
      [n] uint64: the polynomial in an odd number whose coefficients are the bytes, plus 1, of the
      UTF-8 text, modulo 2^64, scrambled as in SplitMix64.
    """
    strings = strings.cast(pa.large_string())
    if not len(strings):
        return np.zeros(0, np.uint64)
    _, offsets, content = strings.buffers()
    offsets = np.frombuffer(offsets, np.int64)[strings.offset : strings.offset + len(strings) + 1]
    first, last = int(offsets[0]), int(offsets[-1])
    content = (
        np.frombuffer(content, np.uint8)[first:last] if last > first else np.zeros(0, np.uint8)
    )
    lengths = np.diff(offsets)
    places = np.arange(len(content)) - np.repeat(offsets[:-1] - first, lengths)
    powers = np.cumprod(np.full(lengths.max() + 1, MULTIPLIER, np.uint64))
    terms = (content.astype(np.uint64) + np.uint64(1)) * powers[places]
    values = np.zeros(len(strings), np.uint64)
    if len(terms):
        whole = lengths > 0
        values[whole] = np.add.reduceat(terms, (offsets[:-1] - first)[whole])
    return scrambled(values)


def scrambled(values: np.ndarray) -> np.ndarray:
    """Mixes the bits of values [n] uint64, in place, as SplitMix64 does."""
    values ^= values >> np.uint64(30)
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    return values ^ values >> np.uint64(31)


def _names_of(
    titles: pa.Array, plain: pa.Array, aliases: pa.Array, first: int
) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Yields keys, rows and kind of the names of a batch of entities that begins at row `first`."""
    rows = np.arange(first, first + len(titles))
    yield name_keys(titles), rows, KINDS.index("title")
    qualified = pc.not_equal(plain, titles)
    yield name_keys(plain.filter(qualified)), rows[_numpy(qualified)], KINDS.index("name")
    counts = _numpy(pc.list_value_length(aliases))
    yield name_keys(aliases.flatten()), np.repeat(rows, counts), KINDS.index("alias")


def _sorted_names(
    names: Sequence[tuple[np.ndarray, np.ndarray, int]],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns all names sorted by key, kind and row: keys, rows and kinds [N]."""
    keys = np.concatenate([keys for keys, _, _ in names])
    rows = np.concatenate([rows for _, rows, _ in names])
    kinds = np.concatenate([np.full(len(keys), kind) for keys, _, kind in names])
    order = np.lexsort((rows, kinds, keys))
    return keys[order], rows[order], kinds[order]


def _numpy(values: pa.Array) -> np.ndarray:
    """Returns an Arrow array without nulls as NumPy's, writable or not."""
    return values.to_numpy(zero_copy_only=False)


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lists the places of ranges: [5, 9] and [2, 1] -> owners [0, 0, 1], places [5, 6, 9]."""
    owners = np.repeat(np.arange(len(starts)), lengths)
    before = np.cumsum(lengths) - lengths
    return owners, np.arange(len(owners)) - before[owners] + starts[owners]
