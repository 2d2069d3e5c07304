"""Knows the words of a catalogue: memory-mapped arrays of hashes, sorted, with counts.

A folder holds `words.json` (a description with the checksums of the arrays) and

| file       |            | holds                                                                  |
| ---------- | ---------- | ---------------------------------------------------------------------- |
| keys.npy   | uint64 [N] | hashes of words, and of pairs of words with a blank between, ascending |
| counts.npy | uint32 [N] | how often each occurs                                                  |

Words are those of titles, aliases and texts, without digits, as `normal_names` writes them; a word
of a name counts as `NAME_WEIGHT` of a text. Pairs are neighbours in a title or an alias. Arrays are
mapped, not read, so opening a folder takes milliseconds for any number of entities.
"""

from __future__ import annotations

import collections
import functools
import os
import pathlib
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from elq_jax.core.errors import ElqError
from elq_jax.core.strings import made_whole
from elq_jax.entities.catalogue import Catalogue
from elq_jax.entities.name_index import MULTIPLIER, hash_strings, scrambled
from elq_jax.entities.names import normal_names
from elq_jax.storage.checksums import Sha256, are_cheap, check_digest, read_json
from elq_jax.storage.files import array_digest, atomic_folder, map_array, save_array, write_json

NAME_WEIGHT = 5
FORMAT_VERSION = 1
_DESCRIPTION = "words.json"
_AGAIN = (
    "copy the folder again, or make it again in Python: WordIndex.build(Catalogue.open("
    '"catalogue.arrow")).save("words")'
)
_DTYPES = {"keys": np.uint64, "counts": np.uint32}
_MERGED_AT = 1 << 23  # words of a part of the catalogue that are held before they are merged
# A letter is in the alphabet if it is in one of so many different words of names.
_LEAST_SHARE, _MOST_LETTERS = 1 / 200, 64
_FEWEST_LETTERS = 3


class WordIndex:
    """The words of all names and texts of a catalogue. Made by `build` or `open`.

    Attributes:
      total: number of words in the texts, repetitions included.
      alphabet: letters that are frequent in names, in lower case and without diacritics.
      catalogue_fingerprint: fingerprint of the catalogue.
      folder: folder that the index was opened from; None if it was built in memory.
    """

    def __init__(
        self,
        keys: np.ndarray,
        counts: np.ndarray,
        total: int,
        alphabet: str,
        catalogue_fingerprint: str,
        folder: pathlib.Path | None = None,
    ):
        """Wraps arrays, see the table of this module."""
        self._arrays = {"keys": keys, "counts": counts}
        self.total, self.alphabet, self.folder = total, alphabet, folder
        self.catalogue_fingerprint = catalogue_fingerprint

    def __len__(self) -> int:
        return len(self._arrays["keys"])

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
        keys, counts = counter.merged()
        return cls(keys, counts, total, "".join(sorted(alphabet)), catalogue.fingerprint)

    def counts(self, keys: np.ndarray) -> np.ndarray:
        """Returns how often words or pairs with hashes [n] uint64 occur, [n] int64."""
        return counts_in(keys, self._arrays["keys"], self._arrays["counts"])

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes a folder, which appears under its name when it is whole.

        Raises:
          ElqError: `folder` exists and holds something else; the disk is full.
        """
        with atomic_folder(folder, "an index of words", _is_ours) as temporary:
            digests = {}
            for name, array in self._arrays.items():
                save_array(temporary / f"{name}.npy", array)
                digests[f"{name}.npy"] = array_digest(array)
            description = Description(
                FORMAT_VERSION,
                len(self),
                self.total,
                self.alphabet,
                self.catalogue_fingerprint,
                digests,
            )
            write_json(temporary / _DESCRIPTION, msgspec.to_builtins(description))

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
        description = _read_description(folder)
        fingerprint = description.catalogue_fingerprint
        if catalogue_fingerprint not in (None, fingerprint):
            raise ElqError(
                f"{folder}: words of another catalogue (fingerprint {fingerprint}, expected "
                f"{catalogue_fingerprint}); {_AGAIN}"
            )
        arrays = [
            map_array(folder / f"{name}.npy", dtype, (description.words,), _AGAIN)
            for name, dtype in _DTYPES.items()
        ]
        if are_cheap(folder.glob("*.npy")):
            check_words(folder)
        return cls(*arrays, description.total, description.alphabet, fingerprint, folder)


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


def check_words(folder: str | os.PathLike[str]) -> None:
    """Compares all arrays of a folder with their checksums.

    Raises:
      DataError: an array is missing or damaged.
    """
    description = _read_description(pathlib.Path(folder))
    for name in _DTYPES:
        file = f"{name}.npy"
        check_digest(pathlib.Path(folder) / file, description.sha256.get(file, ""), _AGAIN)


def _read_description(folder: pathlib.Path) -> Description:
    path = folder / _DESCRIPTION
    if not path.is_file():
        raise ElqError(f"{folder}: no index of words here ({_DESCRIPTION} is missing); {_AGAIN}")
    version = read_json(path, dict[str, Any], _AGAIN).get("format_version")
    if version != FORMAT_VERSION:
        raise ElqError(
            f"{path}: format version {version!r}, this program reads {FORMAT_VERSION}; {_AGAIN}"
        )
    return read_json(path, Description, _AGAIN)


def _is_ours(folder: pathlib.Path) -> bool:
    return (folder / _DESCRIPTION).is_file()


def counts_in(keys: np.ndarray, known: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Looks up keys [n] among ascending known ones; returns their counts [n] int64, or 0."""
    if not len(known):
        return np.zeros(len(keys), np.int64)
    places = np.minimum(np.searchsorted(known, keys), len(known) - 1)
    return np.where(known[places] == keys, counts[places], 0).astype(np.int64)


def word_keys(words: Sequence[str]) -> np.ndarray:
    """Returns the hashes [n] uint64 by which words, and pairs "like this", are looked up."""
    return hash_strings(pa.array(words, pa.string()))


class Spellings(NamedTuple):
    """Ways to write a word with one slip: v of them, the same way perhaps several times.

    Attributes:
      keys: [v] uint64, hashes.
      edits: [v] int8, place in `EDITS` of what makes the word this one.
      places: [v] int64, place of the letter that is changed, from 1.
      letters: [v] int64, place in the alphabet of the new letter; -1 if there is none.
    """

    keys: np.ndarray
    edits: np.ndarray
    places: np.ndarray
    letters: np.ndarray


EDITS = ("drop", "swap", "replace", "insert")
DROP, SWAP, REPLACE, INSERT = range(len(EDITS))


def spellings(word: str, alphabet: str) -> Spellings:
    """Hashes all words of Damerau-Levenshtein distance 1 that begin with the same letter.

    No word is written out: a hash is a scrambled polynomial in `MULTIPLIER`, so that of another
    spelling follows from sums over the letters before and after the edit.

    Args:
      word: word of n letters.
      alphabet: A letters that may be new in it.

    Returns:
      n - 1 words without a letter, n - 2 with neighbours swapped, (n - 1) A with a letter replaced
      (by itself too) and n A with a new letter, in this order.
    """
    values, lengths = _polynomials(word)
    new_values, new_lengths = _polynomials(alphabet)
    n, size = len(word), len(alphabet)
    ends = np.cumsum(lengths)
    starts = ends - lengths
    before = np.cumsum(np.append(np.uint64(0), values * _power(starts)))
    after = before[-1] - before  # of the letters from a place on
    i = np.arange(1, n)
    drop = before[i] + after[i + 1] * _power(-lengths[i])
    j = i[:-1]
    swapped = values[j + 1] + values[j] * _power(lengths[j + 1])
    swap = before[j] + swapped * _power(starts[j]) + after[j + 2]
    replaced = before[i, None] + new_values * _power(starts[i])[:, None]
    replaced = replaced + after[i + 1, None] * _power(new_lengths - lengths[i, None])
    k = np.arange(1, n + 1)
    inserted = before[k, None] + new_values * _power(np.append(starts, ends[-1])[k])[:, None]
    inserted = inserted + after[k, None] * _power(new_lengths)
    keys = [drop, swap, replaced.ravel(), inserted.ravel()]
    places = [i, j, np.repeat(i, size), np.repeat(k, size)]
    new = np.arange(size)
    letters = [np.full(2 * n - 3, -1), np.tile(new, n - 1), np.tile(new, n)]
    edits = np.repeat(np.arange(len(EDITS), dtype=np.int8), [len(part) for part in keys])
    return Spellings(
        scrambled(np.concatenate(keys)), edits, np.concatenate(places), np.concatenate(letters)
    )


def spelled(word: str, edit: int, place: int, letter: str) -> str:
    """Writes out a spelling: ("word", SWAP, 1, "") is "wrod", ("word", INSERT, 4, "s") "words"."""
    head, tail = word[:place], word[place:]
    if edit == DROP:
        return head + tail[1:]
    if edit == SWAP:
        return head + tail[1] + tail[0] + tail[2:]
    return head + letter + tail[int(edit == REPLACE) :]


def _polynomials(letters: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the polynomial [n] uint64 and the number of bytes [n] int64 of each letter."""
    values, lengths = zip(*map(_polynomial, letters), strict=True) if letters else ((), ())
    return np.array(values, np.uint64), np.array(lengths, np.int64)


@functools.lru_cache(1 << 12)
def _polynomial(letter: str) -> tuple[int, int]:
    content = made_whole(letter).encode()
    value = sum((byte + 1) * MULTIPLIER**i for i, byte in enumerate(content, 1))
    return value % 2**64, len(content)


def _power(exponents: np.ndarray) -> np.ndarray:
    """Returns `MULTIPLIER` to powers, modulo 2^64; negative ones are powers of the inverse."""
    most = 1 << int(np.abs(exponents).max(initial=1)).bit_length()
    return _powers(most)[exponents + most]


@functools.lru_cache
def _powers(most: int) -> np.ndarray:
    """Returns powers from -`most` to `most`, [2 * most + 1] uint64."""
    inverse = pow(MULTIPLIER, -1, 2**64)
    negative, positive = (np.cumprod(np.full(most, x, np.uint64)) for x in (inverse, MULTIPLIER))
    return np.concatenate([negative[::-1], np.ones(1, np.uint64), positive])


class _Counter:
    """Counts strings by their hashes; holds each different one once, and few others."""

    def __init__(self):
        self._parts: list[tuple[np.ndarray, np.ndarray]] = []
        self._unmerged = 0

    def add(self, strings: pa.Array, weight: int = 1) -> pa.Array:
        """Counts strings, each `weight` times; returns the different ones."""
        table = pc.value_counts(strings)
        distinct, counts = table.field("values"), table.field("counts").to_numpy()
        self._parts.append((hash_strings(distinct), counts * weight))
        self._unmerged += len(distinct)
        if self._unmerged > _MERGED_AT:
            self._parts, self._unmerged = [self.merged()], 0
        return distinct

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
