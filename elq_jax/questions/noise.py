"""Changes a question the way people write, and carries the offsets of its mentions along.

Each function takes a text, spans in it (half-open, in characters) and a random generator, and
returns the changed text and the spans in it, in the same order:

    drop_apostrophes("who is men's head?", [(7, 12)], rng) -> ("who is mens head?", [(7, 11)])

What is inserted at the border of a span stays outside of it. No span becomes empty.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from elq_jax.core.errors import ElqError
from elq_jax.questions.records import Span

Noise = Callable[[str, Sequence[Span], np.random.Generator], tuple[str, list[Span]]]
Edit = tuple[int, int, str]  # (start, end, what stands there instead)

EMOJI = ("😀", "❤️", "👍🏽", "🇫🇷", "👨‍👩‍👧")  # One code point, and with selector, skin tone, joiner.
SYMBOLS = ("™", "®", "→", "★", "°")
APOSTROPHES = "'’ʼ`´"
QUESTION_MARKS = "?？؟"
# Letters beside each other on a keyboard: the ones that a finger hits instead.
_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
NEIGHBOURS = {
    letter: row[max(place - 1, 0) : place] + row[place + 1 : place + 2]
    for row in _ROWS
    for place, letter in enumerate(row)
}
_LEAST_WORD = 4  # Letters of a word that may have a typo; "is" with a typo is another word.


def apply_edits(text: str, spans: Sequence[Span], edits: Iterable[Edit]) -> tuple[str, list[Span]]:
    """Replaces parts of a text and moves spans accordingly.

    Args:
      text: the text.
      spans: half-open character offsets in it; may overlap.
      edits: parts (start, end, replacement) in the order of the text, apart from one another; an
        insertion has start == end. An insertion at a border of a span stays outside of it, and so
        does one between two spans that touch.

    Returns:
      the new text and the spans in it.

    Raises:
      ElqError: edits overlap, or one replaces text on both sides of a border of a span.

    Example: ("ab cd", [(3, 5)], [(1, 1, "x"), (3, 4, "C!")]) -> ("axb C!d", [(4, 7)]).
    """
    pieces: list[str] = []
    starts, ends = {}, {}  # Borders of spans -> offsets in the new text.
    borders = sorted({border for span in spans for border in span})
    place = shift = 0
    remaining = iter(borders)
    border = next(remaining, None)
    for start, end, replacement in edits:
        if start < place or end < start:
            raise ElqError(f"edit [{start}, {end}): it overlaps the edit before, or is reversed")
        while border is not None and border <= start:
            starts[border] = ends[border] = border + shift
            if border == start == end:
                starts[border] += len(replacement)
            border = next(remaining, None)
        if border is not None and border < end:
            raise ElqError(f"edit [{start}, {end}): a span begins or ends inside of it, {border}")
        pieces += [text[place:start], replacement]
        place, shift = end, shift + len(replacement) - (end - start)
    while border is not None:
        starts[border] = ends[border] = border + shift
        border = next(remaining, None)
    pieces.append(text[place:])
    return "".join(pieces), [(starts[start], ends[end]) for start, end in spans]


def upper_case(
    text: str, spans: Sequence[Span], rng: np.random.Generator
) -> tuple[str, list[Span]]:
    """Writes everything in capitals ("ß" becomes two)."""
    return apply_edits(text, spans, [(i, i + 1, c.upper()) for i, c in enumerate(text)])


def lower_case(
    text: str, spans: Sequence[Span], rng: np.random.Generator
) -> tuple[str, list[Span]]:
    """Writes everything in small letters."""
    return apply_edits(text, spans, [(i, i + 1, c.lower()) for i, c in enumerate(text)])


def drop_question_mark(
    text: str, spans: Sequence[Span], rng: np.random.Generator
) -> tuple[str, list[Span]]:
    """Drops question marks at the end, and white space before them, unless they are a mention."""
    end = len(text.rstrip())
    start = len(text[:end].rstrip(QUESTION_MARKS))
    if start < end:
        start = len(text[:start].rstrip())
    if any(first >= start for first, _ in spans):
        return text, list(spans)
    return apply_edits(text, spans, [(i, i + 1, "") for i in range(start, end)])


def drop_apostrophes(
    text: str, spans: Sequence[Span], rng: np.random.Generator
) -> tuple[str, list[Span]]:
    """Drops all apostrophes: "what's" becomes "whats"."""
    places = {i for i, c in enumerate(text) if c in APOSTROPHES}
    for start, end in spans:
        if places.issuperset(range(start, end)):  # A mention of nothing else stays.
            places.difference_update(range(start, end))
    return apply_edits(text, spans, [(i, i + 1, "") for i in sorted(places)])


def glue_emoji(
    text: str, spans: Sequence[Span], rng: np.random.Generator
) -> tuple[str, list[Span]]:
    """Glues an emoji to the end of each mention, or of the last word: "what is paris😀?"."""
    return _glue(text, spans, rng, EMOJI)


def glue_symbols(
    text: str, spans: Sequence[Span], rng: np.random.Generator
) -> tuple[str, list[Span]]:
    """Glues a symbol to the end of each mention, or of the last word: "who founded lego™?"."""
    return _glue(text, spans, rng, SYMBOLS)


def put_emoji_near(
    text: str, spans: Sequence[Span], rng: np.random.Generator
) -> tuple[str, list[Span]]:
    """Puts an emoji after each mention, or after the last word: "what is paris 😀?"."""
    return _glue(text, spans, rng, [f" {emoji}" for emoji in EMOJI])


def _glue(
    text: str, spans: Sequence[Span], rng: np.random.Generator, signs: Sequence[str]
) -> tuple[str, list[Span]]:
    last = max((i + 1 for i, c in enumerate(text) if c.isalnum()), default=0)
    ends = sorted({end for _, end in spans}) or [last] * (last > 0)
    # Inside of another span it would be part of a mention.
    ends = [end for end in ends if not any(s < end < e for s, e in spans)]
    edits = [(end, end, signs[rng.integers(len(signs))]) for end in ends]
    return apply_edits(text, spans, edits)


def typo(text: str, spans: Sequence[Span], rng: np.random.Generator) -> tuple[str, list[Span]]:
    """Makes one typo in a random word of four letters or more; other texts stay as they are.

    After the first letter of the word, a letter is left out, doubled, replaced by a neighbour on
    the keyboard, or exchanged with the next one. A typo is never across the border of a mention.
    """
    edits = _typos(text, {border for span in spans for border in span})
    if not edits:
        return text, list(spans)
    of_word = edits[rng.integers(len(edits))]
    of_place = of_word[rng.integers(len(of_word))]
    return apply_edits(text, spans, [of_place[rng.integers(len(of_place))]])


def _typos(text: str, borders: set[int]) -> list[list[list[Edit]]]:
    """Lists the possible typos: by word, then by letter, then by kind."""
    words = []
    for is_word, places in itertools.groupby(range(len(text)), lambda i: text[i].isalpha()):
        places = list(places)
        if is_word and len(places) >= _LEAST_WORD:
            words.append([_typos_at(text, i, places[-1], borders) for i in places[1:]])
    return words


def _typos_at(text: str, i: int, last: int, borders: set[int]) -> list[Edit]:
    letter = text[i]
    edits = [(i, i + 1, letter * 2)]
    if not {i, i + 1} <= borders:  # A mention of one letter would be empty.
        edits.append((i, i + 1, ""))
    for neighbour in NEIGHBOURS.get(letter.lower(), ""):
        edits.append((i, i + 1, neighbour if letter.islower() else neighbour.upper()))
    if i < last and i + 1 not in borders and letter != text[i + 1]:
        edits.append((i, i + 2, text[i + 1] + letter))
    return edits
