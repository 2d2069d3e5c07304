"""Cuts long texts to windows that fit the encoder."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from elq_jax.core.errors import check_count

_SENTENCE_END = re.compile(r"[.!?…。！？][\"'”’)\]]*\s+|\n+")
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


def parts_to_read(
    text: str,
    read: Callable[[str], int | None],
    *,
    longest: int,
    whole: Sequence[tuple[int, int]] = (),
) -> list[tuple[int, int]]:
    """Cuts a text into parts that the encoder reads to their ends, in the order of the text.

    A part ends at the end of a sentence or line; where a sentence is too long, between two words;
    where a word is too long, anywhere.

    Args:
      text: text of any length.
      read: function that says up to which character of a text the encoder reads; None: to its end.
      longest: largest number of characters of a part, which bounds the work of `read`.
      whole: half-open spans, such as mentions, that are not cut if they fit.

    Returns:
      half-open spans that cover the text; none if it is empty.

    Example: ("Dune. By Herbert.", a function that reads 8 characters) -> [(0, 6), (6, 9), (9, 17)]
    """
    parts, start = [], 0
    while start < len(text):
        part = text[start : start + longest]
        end = start + max(read(part) or len(part), 1)
        if end < len(text):
            end = _last_break(text, start, end, whole)
        parts.append((start, end))
        start = end
    return parts


def sentences_of(text: str, whole: Sequence[tuple[int, int]] = ()) -> list[tuple[int, int]]:
    """Divides a text into sentences and lines, by punctuation alone.

    Args:
      text: text.
      whole: half-open spans, such as mentions, that are not divided.

    Returns:
      half-open spans that cover the text; none if it is empty.

    Example: "Who is it? Ada." -> [(0, 11), (11, 15)]
    """
    places = [match.end() for match in _SENTENCE_END.finditer(text)]
    places = [place for place in places if not any(first < place < last for first, last in whole)]
    return [
        (start, end) for start, end in itertools.pairwise([0, *places, len(text)]) if start < end
    ]


def _last_break(text: str, start: int, end: int, whole: Sequence[tuple[int, int]]) -> int:
    """Returns the last good place after `start`, and at `end` or before, to cut a text at."""
    # A span that is cut already, or does not fit, may be cut at the best place.
    crossed = [
        (first, last)
        for first, last in whole
        if start < first < end or (first == start and last <= end)
    ]
    for places in (
        [match.end() for match in _SENTENCE_END.finditer(text, start, end)],
        [match.end() for match in _BLANK.finditer(text, start, end)],
        sorted(first for first, last in crossed if last > end),
    ):
        for place in reversed(places):
            if place > start and not any(first < place < last for first, last in crossed):
                return place
    return end
