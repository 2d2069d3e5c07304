"""Replaces parts of a text, and finds the places of tokens in the text as it was written."""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

JOINERS = "\u200d\ufe0e\ufe0f"  # Joiner and variation selectors, as inside of emoji.
_SAYING = "°♯♭"  # something of the number or the letter before them
_SYMBOLS = ("So", "Sk", "Sm", "Cn", "Cs")  # Unicode categories; most emoji are So.


class Correction(NamedTuple):
    """A part of a text that is read in another way.

    Attributes:
      start: first character of the part, a word or symbols behind one.
      end: offset one past its last character.
      text: what is read instead.
    """

    start: int
    end: int
    text: str


def corrected(
    text: str, corrections: Sequence[Correction], start: int = 0, end: int | None = None
) -> str:
    """Returns text[start:end] with the corrections of the words that lie in it.

    Args:
      text: text as it was written.
      corrections: corrections in the order of the text.
      start, end: half-open character offsets that no correction crosses; by default all.
    """
    end = len(text) if end is None else end
    if not corrections:
        return text[start:end]
    pieces = []
    for correction in corrections:
        if start <= correction.start and correction.end <= end:
            pieces += [text[start : correction.start], correction.text]
            start = correction.end
    return "".join([*pieces, text[start:end]])


def glued_symbols(text: str) -> Iterator[Correction]:
    """Yields corrections that leave out emoji and other symbols at the end of a word.

    Symbols of ASCII or inside of a word stay ("C++", "M★A★S★H"), and so do sharps, flats and
    degrees behind a digit or a single letter ("20°", "C♯").

    Example: glued_symbols("who founded lego™?") -> [Correction(16, 17, "")].
    """
    if text.isascii():
        return
    end = 0
    for is_symbol, characters in itertools.groupby(text, _is_symbol):
        symbols = "".join(characters)
        start, end = end, end + len(symbols)
        is_glued = is_symbol and start and not text[start - 1].isspace()
        if not is_glued or text[end : end + 1].isalnum() or not set(symbols) - set(JOINERS):
            continue
        word = text[max(start - 2, 0) : start]
        if symbols[0] not in _SAYING or (word.isalpha() and len(word) == 2):
            yield Correction(start, end, "")


def _is_symbol(character: str) -> bool:
    if character.isascii():
        return False
    return character in JOINERS or unicodedata.category(character) in _SYMBOLS


def original_offsets(offsets: np.ndarray, corrections: Sequence[Correction]) -> np.ndarray:
    """Returns where the tokens of a corrected text stand in the text as it was.

    A token that begins or ends inside of a corrected word begins or ends where that word does.

    Args:
      offsets: [T, 2] int, half-open character offsets in the corrected text; (0, 0) for a token
        without characters.
      corrections: corrections in the order of the text.

    Returns:
      [T, 2], of the same dtype.

    Example: original_offsets([[0, 3], [4, 8]], [Correction(4, 7, "dune")]) -> [[0, 3], [4, 7]].
    """
    first, last = offsets[offsets[:, 0] < offsets[:, 1]].T
    moved_first, moved_last = first.copy(), last.copy()
    shift = 0
    for start, end, text in corrections:
        before, after = start + shift, start + shift + len(text)
        shift = after - end
        moved_first[(first > before) & (first < after)] = start
        moved_first[first >= after] = first[first >= after] - shift
        moved_last[(last > before) & (last < after)] = end
        is_later = (last > before) & (last >= after)
        moved_last[is_later] = last[is_later] - shift
    moved = offsets.copy()
    moved[offsets[:, 0] < offsets[:, 1]] = np.stack([moved_first, moved_last], axis=1)
    return moved
