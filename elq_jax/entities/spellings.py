"""Hashes all words that one slip makes of a word, without writing them out.

The hash of a string is a scrambled polynomial in `MULTIPLIER`, so that of another spelling follows
from sums over the letters before and after the letter that differs.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from elq_jax.entities.name_index import MULTIPLIER, scrambled

DROP, SWAP, REPLACE, INSERT = range(4)


class Spellings(NamedTuple):
    """Other spellings of w words of n letters: v of each, the same one perhaps several times.

    Attributes:
      keys: [w, v] uint64, hashes as `word_keys` computes them.
      edits: [v] int64, what makes the word this one: DROP, SWAP, REPLACE or INSERT.
      places: [v] int64, place of the letter that is changed, from 1.
      letters: [v] int64, place in the alphabet of the new letter; -1 if there is none.
    """

    keys: np.ndarray
    edits: np.ndarray
    places: np.ndarray
    letters: np.ndarray


def spellings(words: np.ndarray, alphabet: str) -> Spellings:
    """Hashes all words of Damerau-Levenshtein distance 1 that begin with the same letter.

    Args:
      words: [w, n] int, words of n letters each, which are places in the alphabet.
      alphabet: A letters.

    Returns:
      for each word, n - 1 words without a letter, n - 2 with neighbours swapped, (n - 1) A with a
      letter replaced (by itself too) and n A with a new letter, in this order.
    """
    new, new_size = _polynomials(alphabet)
    values, sizes = new[words], new_size[words]
    n, number = words.shape[1], len(alphabet)
    ends = np.cumsum(sizes, axis=1)
    starts = np.concatenate([ends - sizes, ends[:, -1:]], axis=1)  # and where the word ends
    powers = _power(starts)
    sums = np.cumsum(values * powers[:, :-1], axis=1)
    before = np.concatenate([np.zeros_like(sums[:, :1]), sums], axis=1)
    after = sums[:, -1:] - before  # of the letters from a place on
    i, j, k = np.arange(1, n), np.arange(1, n - 1), np.arange(1, n + 1)
    dropped = before[:, i] + after[:, i + 1] * _power(-sizes[:, i])
    swapped = values[:, j + 1] + values[:, j] * _power(sizes[:, j + 1])
    swapped = before[:, j] + swapped * powers[:, j] + after[:, j + 2]
    replaced = before[:, i, None] + powers[:, i, None] * new
    replaced += after[:, i + 1, None] * _power(new_size - sizes[:, i, None])
    inserted = before[:, k, None] + powers[:, k, None] * new
    inserted += after[:, k, None] * _power(new_size)
    parts = [part.reshape(len(words), -1) for part in (dropped, swapped, replaced, inserted)]
    letters = np.arange(number)
    return Spellings(
        scrambled(np.concatenate(parts, axis=1)),
        np.repeat([DROP, SWAP, REPLACE, INSERT], [part.shape[1] for part in parts]),
        np.concatenate([i, j, np.repeat(i, number), np.repeat(k, number)]),
        np.concatenate([np.full(len(i) + len(j), -1), np.tile(letters, len(i) + len(k))]),
    )


def spelled(word: str, edit: int, place: int, letter: str) -> str:
    """Writes out a spelling: ("word", SWAP, 1, "") is "wrod", ("word", INSERT, 4, "s") "words"."""
    head, tail = word[:place], word[place:]
    if edit == DROP:
        return head + tail[1:]
    if edit == SWAP:
        return head + tail[1] + tail[0] + tail[2:]
    return head + letter + tail[int(edit == REPLACE) :]


@functools.lru_cache
def _polynomials(letters: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the polynomial [n] uint64 and the number of bytes [n] int64 of each letter."""
    contents = [letter.encode() for letter in letters]
    polynomials = [
        sum((byte + 1) * MULTIPLIER**i for i, byte in enumerate(content, 1)) % 2**64
        for content in contents
    ]
    return np.array(polynomials, np.uint64), np.array([*map(len, contents)], np.int64)


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
