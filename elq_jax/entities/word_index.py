"""Knows the words of a catalogue: memory-mapped arrays of hashes, sorted, with counts.

A folder holds `words.json` (a description with the checksums of the arrays) and

| file       |            | holds                                                                  |
| ---------- | ---------- | ---------------------------------------------------------------------- |
| keys.npy   | uint64 [N] | hashes of words, and of pairs of words with a blank between, ascending |
| counts.npy | uint32 [N] | how often each occurs                                                  |
| bits.npy   | uint8 [F]  | a bit for each beginning of a hash: whether it is one of a key         |

Words are those of titles, aliases and texts, without digits, as `normal_names` writes them; a word
of a name counts as `NAME_WEIGHT` of a text. Pairs are neighbours in a title or an alias. Arrays are
mapped, not read, so opening a folder takes milliseconds for any number of entities.
"""

from __future__ import annotations

import collections
import os
import pathlib
from collections.abc import Sequence
from typing import Annotated, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from elq_jax.entities.catalogue import Catalogue
from elq_jax.entities.name_index import hash_strings
from elq_jax.entities.names import normal_names
from elq_jax.storage.array_folder import ArrayFolder
from elq_jax.storage.checksums import Sha256

NAME_WEIGHT = 5
FORMAT_VERSION = 1
_AGAIN = (
    "copy the folder again, or make it again in Python: WordIndex.build(Catalogue.open("
    '"catalogue.arrow")).save("words")'
)
_DTYPES = {"keys": np.uint64, "counts": np.uint32, "bits": np.uint8}
_MERGED_AT = 1 << 23  # words of a part of the catalogue that are held before they are merged
# A letter is in the alphabet if it is in one of so many different words of names.
_LEAST_SHARE, _MOST_LETTERS = 1 / 200, 64
_FEWEST_LETTERS = 3


class WordIndex:
    """The words of all names and texts of a catalogue. Made by `build` or `open`.

    Attributes:
      counts: how often words and pairs occur, by `word_keys`.
      total: number of words in the texts, repetitions included.
      alphabet: letters that are frequent in names, in lower case and without diacritics.
      catalogue_fingerprint: fingerprint of the catalogue.
      folder: folder that the index was opened from; None if it was built in memory.
    """

    def __init__(
        self,
        counts: Counts | JoinedCounts,
        total: int,
        alphabet: str,
        catalogue_fingerprint: str,
        folder: pathlib.Path | None = None,
    ):
        """Wraps counts, see the table of this module."""
        self.counts, self.total, self.alphabet, self.folder = counts, total, alphabet, folder
        self.catalogue_fingerprint = catalogue_fingerprint

    def __len__(self) -> int:
        return len(self.counts.keys)

    @classmethod
    def build(cls, catalogue: Catalogue) -> WordIndex:
        """Counts the words of a catalogue in one pass; memory grows with different words only."""
        counter, letters, total = _Counter(), collections.Counter[str](), 0
        for batch in catalogue.batches():
            for names in (batch.column("title"), batch.column("aliases").flatten()):
                owners, words = _words_of(names)
                distinct = counter.add(words, NAME_WEIGHT)
                for word in distinct.to_pylist():
                    letters.update(set(word))
                counter.add(_pairs(owners, words))
            _, words = _words_of(batch.column("text"))
            counter.add(words)
            total += len(words)
        least = _LEAST_SHARE * letters.total() / _FEWEST_LETTERS
        alphabet = [letter for letter, n in letters.most_common(_MOST_LETTERS) if n >= least]
        counts = Counts.of(*counter.merged())
        return cls(counts, total, "".join(sorted(alphabet)), catalogue.fingerprint)

    def joined(self, others: Sequence[WordIndex], catalogue_fingerprint: str) -> WordIndex:
        """Returns the index with the counts of small catalogues that were added to this one.

        Alphabet and total stay those of this index.

        Args:
          others: words of the small catalogues.
          catalogue_fingerprint: fingerprint of the joined catalogue.
        """
        counter = _Counter()
        for other in others:
            counter.add_counts(other.counts.keys, other.counts.counts)
        counts = JoinedCounts(self.counts.keys, (self.counts, Counts.of(*counter.merged())))
        return WordIndex(counts, self.total, self.alphabet, catalogue_fingerprint)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes a folder, which appears under its name when it is whole.

        Raises:
          ElqError: `folder` exists and holds something else; the disk is full.
        """
        FILES.save(
            folder,
            self.counts._asdict(),
            words=len(self),
            total=self.total,
            alphabet=self.alphabet,
            catalogue_fingerprint=self.catalogue_fingerprint,
        )

    @classmethod
    def open(
        cls, folder: str | os.PathLike[str], catalogue_fingerprint: str | None = None
    ) -> WordIndex:
        """Opens a folder that `save` wrote; small arrays are compared with their checksums.

        Args:
          folder: path of the folder.
          catalogue_fingerprint: fingerprint of the catalogue to expect; None: not checked.

        Raises:
          ElqError: there is no index of words, or it is damaged or of another catalogue.
        """
        folder = pathlib.Path(folder)
        description = FILES.read(folder, catalogue_fingerprint)
        n = description.words
        shapes = {"keys": (n,), "counts": (n,), "bits": (1 << _log_bits(n) - 3,)}
        counts = Counts(**FILES.map(folder, shapes))
        fingerprint = description.catalogue_fingerprint
        return cls(counts, description.total, description.alphabet, fingerprint, folder)


class Description(msgspec.Struct, frozen=True):
    """The file words.json.

    Attributes:
      format_version: version of the files, `FORMAT_VERSION`.
      words: N, number of different words and pairs.
      total: number of words in the texts.
      alphabet: letters that are frequent in names.
      catalogue_fingerprint: fingerprint of the catalogue whose words these are.
      sha256: checksums of the arrays by the names of their files.
    """

    format_version: int
    words: Annotated[int, msgspec.Meta(ge=0)]
    total: Annotated[int, msgspec.Meta(ge=0)]
    alphabet: str
    catalogue_fingerprint: str
    sha256: dict[str, Sha256]


FILES = ArrayFolder("words", "words.json", Description, FORMAT_VERSION, _DTYPES, _AGAIN)


class Counts(NamedTuple):
    """Counts by keys, for look-ups most of which find nothing.

    Attributes:
      keys: [N] uint64, hashes, ascending.
      counts: [N], their counts.
      bits: [F] uint8, a bit for each beginning of a hash: whether a key begins so. About 1 in 16
        of other hashes does too.
    """

    keys: np.ndarray
    counts: np.ndarray
    bits: np.ndarray

    @classmethod
    def of(cls, keys: np.ndarray, counts: np.ndarray) -> Counts:
        """Makes the bits of ascending keys."""
        log_bits = _log_bits(len(keys))
        bits = np.zeros(1 << log_bits - 3, np.uint8)
        if len(keys):
            places = keys >> np.uint64(64 - log_bits)
            own = np.uint8(1) << (places & np.uint64(7)).astype(np.uint8)
            first = np.flatnonzero(np.diff(places >> np.uint64(3), prepend=places[:1] + 8))
            bits[places[first] >> np.uint64(3)] = np.bitwise_or.reduceat(own, first)
        return cls(keys, counts, bits)

    def __call__(self, keys: np.ndarray) -> np.ndarray:
        """Returns the counts of hashes [n] uint64, of the dtype of the counts; 0 for others."""
        found = np.zeros(len(keys), self.counts.dtype)
        places = keys >> np.uint64(64 - _log_bits(len(self.keys)))
        bit = self.bits[places >> np.uint64(3)] >> (places & np.uint64(7)).astype(np.uint8) & 1
        may_be = np.flatnonzero(bit)
        if len(may_be):
            wanted = keys[may_be]
            places = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
            found[may_be] = np.where(self.keys[places] == wanted, self.counts[places], 0)
        return found


class JoinedCounts(NamedTuple):
    """Sums of several counts.

    Attributes:
      keys: [N] uint64, keys of the first.
      parts: counts that are added.
    """

    keys: np.ndarray
    parts: tuple[Counts, ...]

    def __call__(self, keys: np.ndarray) -> np.ndarray:
        """Returns the counts of hashes [n] uint64, int64; 0 for others."""
        return np.sum([part(keys) for part in self.parts], axis=0, dtype=np.int64)


def _log_bits(keys: int) -> int:
    """Returns the logarithm of the number of bits for so many keys: 16 to 32 for each."""
    return 4 + max(keys, 1).bit_length()


def word_keys(words: Sequence[str]) -> np.ndarray:
    """Returns the hashes [n] uint64 by which words, and pairs "like this", are looked up."""
    return hash_strings(pa.array(words, pa.string()))


class _Counter:
    """Counts strings by their hashes; holds each different one once, and few others."""

    def __init__(self):
        self._parts: list[tuple[np.ndarray, np.ndarray]] = []
        self._unmerged = 0

    def add(self, strings: pa.Array, weight: int = 1) -> pa.Array:
        """Counts strings, each `weight` times; returns the different ones."""
        table = pc.value_counts(strings)
        distinct, counts = table.field("values"), table.field("counts").to_numpy()
        self.add_counts(hash_strings(distinct), counts * weight)
        return distinct

    def add_counts(self, keys: np.ndarray, counts: np.ndarray) -> None:
        """Adds the counts [n] of hashes [n] uint64."""
        self._parts.append((keys, counts))
        self._unmerged += len(keys)
        if self._unmerged > _MERGED_AT:
            self._parts, self._unmerged = [self.merged()], 0

    def merged(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the hashes [N] uint64, ascending, and their counts [N] uint32."""
        empty = (np.zeros(0, np.uint64), np.zeros(0, np.int64))
        keys, counts = map(np.concatenate, zip(empty, *self._parts, strict=True))
        order = np.argsort(keys)
        keys, counts = keys[order], counts[order]
        first = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]])[: len(keys)])
        sums = np.add.reduceat(counts, first) if len(first) else counts
        return keys[first], np.minimum(sums, 2**32 - 1).astype(np.uint32)


def _words_of(texts: pa.Array) -> tuple[np.ndarray, pa.Array]:
    """Returns the words of texts, and for each the number [w] int64 of the text that has it."""
    names = pc.replace_substring_regex(normal_names(texts), r"[\p{N}+#]+", " ")
    lists = pc.split_pattern(names, " ")
    owners = np.repeat(np.arange(len(texts)), pc.list_value_length(lists).to_numpy())
    words = lists.flatten()
    is_word = pc.not_equal(words, "")
    return owners[is_word.to_numpy(zero_copy_only=False)], words.filter(is_word)


def _pairs(owners: np.ndarray, words: pa.Array) -> pa.Array:
    """Joins neighbours of the same text: [0, 0, 1], ["new", "york", "x"] -> ["new york"]."""
    are_neighbours = pa.array(owners[1:] == owners[:-1])
    left, right = words[:-1].filter(are_neighbours), words[1:].filter(are_neighbours)
    return pc.binary_join_element_wise(left, right, " ")
