"""Cuts long texts to windows that fit the encoder."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from elq_jax.core.errors import check_count

PART_CHARACTERS = 1 << 15
_OVERLAP = 512  # characters; more than any word that BERT reads
# Full stops of Urdu, then of Chinese, Hindi, Amharic, Burmese and Khmer, which need no blank.
_SENTENCE_END = re.compile(r"[.!?…؟۔][\"'”’»)\]]*\s+|[。！？｡।॥።။។]+[”’」』）》]*\s*|\n+")
_BLANK = re.compile(r"\s+")


class QuestionWindow(NamedTuple):
    """The part of a labelled question that the encoder sees.

    Attributes:
      ids: [T] int32, [CLS] ... [SEP], not padded.
      bounds: [M, 2] int32, first and last token (inclusive) of the mentions in the window.
      order: [M] int64, numbers of these mentions; sorted by their positions.
      offset: number of tokens cut off on the left.
    """

    ids: np.ndarray
    bounds: np.ndarray
    order: np.ndarray
    offset: int


def question_window(
    token_ids: Sequence[int] | np.ndarray,
    mentions: Sequence[tuple[int, int]] | np.ndarray,
    max_length: int,
    cls_id: int = 101,
    sep_id: int = 102,
) -> QuestionWindow:
    """Cuts a tokenized question to `max_length` around its mentions, as the original does.

    Mentions are dropped from the last on until the rest fits; a mention that is too long by itself
    loses its end. The remaining room is shared equally by the left and the right context; room that
    a side does not need goes to the other.

    Args:
      token_ids: ids of the question without [CLS] and [SEP].
      mentions: half-open positions in `token_ids`, in any order. If empty, the window is the
        beginning of the question.
      max_length: largest T, with [CLS] and [SEP].
      cls_id: id of [CLS].
      sep_id: id of [SEP].

    Raises:
      ElqError: `max_length` is below 3.
    """
    check_count("max_length", max_length, least=3)
    room = max_length - 2
    spans = np.asarray(mentions, np.int64).reshape(-1, 2)
    order = np.lexsort((spans[:, 1], spans[:, 0]))
    while len(order) > 1 and spans[order[-1], 1] - spans[order[0], 0] > room:
        order = order[:-1]
    spans = spans[order]
    if len(order) == 1:
        spans[0, 1] = min(spans[0, 1], spans[0, 0] + room)
    first, last = (int(spans[0, 0]), int(spans[-1, 1])) if len(order) else (0, 0)

    left, right = first, len(token_ids) - last
    left_room = (max_length - (last - first)) // 2 - 1
    right_room = room - (last - first) - left_room
    if left <= left_room and right > right_room:
        right_room += left_room - left
    elif left > left_room and right <= right_room:
        left_room += right_room - right
    begin = first - min(left, max(left_room, 0))
    end = last + min(right, max(right_room, 0))

    ids = np.array([cls_id, *token_ids[begin:end], sep_id], np.int32)
    bounds = spans - begin + [1, 0]  # 1 for [CLS]; the end becomes inclusive
    bounds = np.minimum(bounds, max_length - 1).astype(np.int32)
    return QuestionWindow(ids, bounds, order, begin)


@dataclasses.dataclass(frozen=True, slots=True)
class TextWindow:
    """Holds the part of a text that the encoder reads at once, in positions of the text's tokens.

    Attributes:
      text: number of the text.
      start: first token; 1 is the one after [CLS].
      stop: number one past the last token.
      low, high: limits of the spans that are scored here: a span [i, j] is if low < i + j <= high.
        So a span in two windows is scored in the one where its shorter context is longer.
    """

    text: int
    start: int
    stop: int
    low: int
    high: int


def text_windows(
    lengths: Sequence[int],
    breaks: Sequence[np.ndarray],
    max_length: int,
    overlap: int,
) -> list[TextWindow]:
    """Covers texts by windows; a text that fits the encoder is one window.

    A window ends at the end of a sentence if there is one in its second half, and the next one
    begins at least `overlap` tokens before that end, at a sentence if one begins there.

    Args:
      lengths: number of tokens of each text, [CLS] and [SEP] included.
      breaks: arrays, one per text, of ascending positions of tokens that begin a sentence.
      max_length: largest T of a window, with [CLS] and [SEP].
      overlap: number of tokens that two windows share, at least; less than half a window is taken.
        Spans of one token more are whole in some window.

    Returns:
      windows of the texts, in their order.
    """
    check_count("max_length", max_length, least=3)
    room = max_length - 2
    overlap = min(overlap, (room - 1) // 2)
    windows = []
    for text, (length, own_breaks) in enumerate(zip(lengths, breaks, strict=True)):
        bounds = _bounds(length - 1, room, overlap, own_breaks)
        limits = [stop - 1 + start for (_, stop), (start, _) in itertools.pairwise(bounds)]
        lows, highs = [-1, *limits], [*limits, 2 * length]
        for own_bounds, low, high in zip(bounds, lows, highs, strict=True):
            windows.append(TextWindow(text, *own_bounds, low, high))
    return windows


def _bounds(end: int, room: int, overlap: int, breaks: np.ndarray) -> list[tuple[int, int]]:
    """Returns half-open bounds of windows over the tokens 1 to `end` - 1; see `text_windows`."""
    bounds, start = [], 1
    while end - start > room:
        stop = _last_of(breaks, start + room // 2 + 1, start + room) or start + room
        bounds.append((start, stop))
        next_start = stop - overlap  # or a sentence that begins shortly before
        start = _last_of(breaks, max(start + 1, next_start - overlap), next_start) or next_start
    return [*bounds, (start, end)]


def _last_of(breaks: np.ndarray, first: int, last: int) -> int:
    """Returns the largest break from `first` to `last`; 0 if there is none."""
    place = int(np.searchsorted(breaks, last, "right"))
    return int(breaks[place - 1]) if place and breaks[place - 1] >= first else 0


def sentence_starts(text: str, offsets: np.ndarray) -> np.ndarray:
    """Finds the tokens that begin a sentence or a line.

    Args:
      text: text.
      offsets: [T, 2] int32, character offsets of its tokens, [CLS] and [SEP] included.

    Returns:
      [b] int64, ascending positions of tokens; the first token of the text is not one.
    """
    starts = offsets[1:-1, 0]
    places = np.array([match.end() for match in _SENTENCE_END.finditer(text)], np.int64)
    tokens = np.unique(np.searchsorted(starts, places)) + 1
    return tokens[(tokens > 1) & (tokens <= len(starts))]


class TextPart(NamedTuple):
    """The part of a text that is tokenised and linked by itself, in characters of the text.

    Attributes:
      start: first character.
      stop: offset one past the last character.
      low, high: limits of the links that count: a link [start, end) does if low < start + end <=
        high. So a link in two parts counts in the one where its shorter context is longer.
    """

    start: int
    stop: int
    low: int
    high: int


def text_parts(
    text: str, longest: int = PART_CHARACTERS, overlap: int = _OVERLAP
) -> list[TextPart]:
    """Covers a text by parts that overlap; a text that is short enough is one part.

    Parts begin and end between sentences, or else at white space, or else anywhere. They bound the
    memory that a long text takes.

    Args:
      text: text of any length.
      longest: largest number of characters of a part.
      overlap: number of characters that two parts share, at least; less than a quarter of
        `longest`.

    Returns:
      parts in the order of the text; one if it is empty.
    """
    bounds, start = [], 0
    while len(text) - start > longest:
        stop = _last_place(text, start + longest // 2 + 1, start + longest)
        bounds.append((start, stop))
        start = _last_place(text, max(start + 1, stop - 2 * overlap), stop - overlap)
    bounds.append((start, len(text)))
    limits = [stop + start for (_, stop), (start, _) in itertools.pairwise(bounds)]
    lows, highs = [-1, *limits], [*limits, 2 * len(text)]
    return [TextPart(*row[0], *row[1:]) for row in zip(bounds, lows, highs, strict=True)]


def _last_place(text: str, first: int, last: int) -> int:
    """Returns the best place from `first` to `last` to cut a text at: the last of the best kind."""
    for pattern in (_SENTENCE_END, _BLANK):
        places = [match.end() for match in pattern.finditer(text, first - 1, last)]
        if places and places[-1] >= first:
            return places[-1]
    return last
