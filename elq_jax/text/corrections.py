"""Replaces words of a text, and finds the places of tokens in the text as it was written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Correction(NamedTuple):
    """Another spelling of a word of a text.

    Attributes:
      start: first character of the word.
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
        after = start + shift + len(text)
        moved_first[(first > start + shift) & (first < after)] = start
        moved_last[(last > start + shift) & (last < after)] = end
        shift = after - end
        moved_first[first >= after] = first[first >= after] - shift
        moved_last[last >= after] = last[last >= after] - shift
    moved = offsets.copy()
    moved[offsets[:, 0] < offsets[:, 1]] = np.stack([moved_first, moved_last], axis=1)
    return moved
