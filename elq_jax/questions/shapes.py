"""Shapes of questions: one pattern asked in full, as a search query or in a chat.

A question in the making is a list of pieces, so that the offsets of names are known whatever is
done to it:

    [Piece("who directed "), Piece("jaws", 17), Piece(" and "), Piece("et", 4), Piece("?")]
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from elq_jax.questions.patterns import Pattern
from elq_jax.questions.words import FUNCTION_WORDS, WORD


class Piece(NamedTuple):
    """A piece of a question.

    Attributes:
      text: text of the piece.
      row: row of the entity that it names; None: it names none.
    """

    text: str
    row: int | None = None


Pieces = list[Piece]
Names = Sequence[Sequence[Piece]]  # several names for each slot of a pattern

_BETWEEN = (" and ", " and ", " or ", ", ", " vs ", " & ")
_GREETINGS = (
    *("hey, ", "hi, ", "ok so ", "so ", "btw ", "hmm ", "please tell me ", "do you know ", "lol "),
    *("can you tell me ", "quick question: ", "i was wondering, ", "no idea, but ", "tell me, "),
    *("cool. ", "thanks! and ", "one more: ", "i forgot, ", "sorry, i meant ", "ok, next: "),
)
_ENDINGS = (
    "",
    "",
    "",
    " thanks",
    " please",
    " lol",
    " any idea?",
    " just curious",
    " i forgot",
    "!!",
)
_AUXILIARIES = re.compile(
    r"(?<=\b)(?:is|are|was|were|do|does|did|the|a|an|in|of|has|have)\s+", re.IGNORECASE
)


def full(pattern: Pattern, names: Names, rng: random.Random) -> Pieces:
    """Returns the pattern with a name in each slot."""
    del rng
    pieces = [Piece(pattern.texts[0])]
    for own, text in zip(names, pattern.texts[1:], strict=True):
        pieces += [own[0], Piece(text)]
    return pieces


def name_alone(pattern: Pattern, names: Names, rng: random.Random) -> Pieces:
    """Returns a name and nothing else."""
    del pattern
    return [rng.choice(names)[0]]


def name_and_word(pattern: Pattern, names: Names, rng: random.Random) -> Pieces:
    """Returns a name before or after a word of the pattern that says something."""
    words = [word for text in pattern.texts for word in _content(text)]
    name = rng.choice(names)[0]
    if not words:
        return [name]
    word = rng.choice(words)
    return [name, Piece(f" {word}")] if rng.random() < 0.7 else [Piece(f"{word} "), name]


def keywords(pattern: Pattern, names: Names, rng: random.Random) -> Pieces:
    """Returns the names and the words of the pattern that say something; at times names first."""
    words = [Piece(" ".join(_content(text))) for text in pattern.texts]
    chosen = [own[0] for own in names]
    if rng.random() < 0.4:
        parts = [*chosen, *words]
    else:
        parts = [words[0]]
        for name, word in zip(chosen, words[1:], strict=True):
            parts += [name, word]
    return _spaced([part for part in parts if part.text])


def two_names(pattern: Pattern, names: Names, rng: random.Random) -> Pieces:
    """Returns two names, of two slots or of one."""
    del pattern
    two = [own[0] for own in names[:2]] if len(names) > 1 else list(names[0][:2])
    if len(two) < 2 or rng.random() < 0.4:
        return _spaced(two)
    return [two[0], Piece(rng.choice(_BETWEEN)), two[1]]


def several(pattern: Pattern, names: Names, rng: random.Random) -> Pieces:
    """Returns the pattern with two or three names of one kind in one of its slots."""
    chosen = rng.randrange(len(names))
    pieces = [Piece(pattern.texts[0])]
    for slot, (own, text) in enumerate(zip(names, pattern.texts[1:], strict=True)):
        pieces.append(own[0])
        others = own[1 : rng.choice((2, 2, 2, 3))] if slot == chosen else []
        for number, other in enumerate(others, 1):
            pieces += [Piece(rng.choice(_BETWEEN[:4]) if number == len(others) else ", "), other]
        pieces.append(Piece(text))
    return pieces


def chat(pattern: Pattern, names: Names, rng: random.Random) -> Pieces:
    """Returns the pattern with what people write around it in a chat."""
    first, *rest = full(pattern, names, rng)
    start = first.text[:1].lower() + first.text[1:]
    return [Piece(rng.choice(_GREETINGS) + start), *rest, Piece(rng.choice(_ENDINGS))]


def fragment(pattern: Pattern, names: Names, rng: random.Random) -> Pieces:
    """Returns the pattern without some of its small words: "where honduras in the world?"."""
    pieces = full(pattern, names, rng)
    share = rng.choice((0.5, 1.0))

    def without(match: re.Match[str]) -> str:
        return "" if rng.random() < share else match[0]

    return [
        piece if piece.row is not None else Piece(_AUXILIARIES.sub(without, piece.text))
        for piece in pieces
    ]


Shape = Callable[[Pattern, Names, random.Random], Pieces]
QUERIES: tuple[Shape, ...] = (
    name_alone,
    name_and_word,
    name_and_word,
    keywords,
    keywords,
    two_names,
)
NAMES_STAND_ALONE = (name_alone, name_and_word, two_names)
"""Shapes in which nothing tells which of several entities with one name is meant."""


def _content(text: str) -> list[str]:
    words = (match[0] for match in WORD.finditer(text))
    return [word for word in words if word.lower() not in FUNCTION_WORDS and word != "s"]


def _spaced(parts: Sequence[Piece]) -> Pieces:
    pieces: Pieces = []
    for part in parts:
        pieces += [Piece(" "), part] if pieces else [part]
    return pieces


def joined(pieces: Pieces) -> tuple[str, list[tuple[int, int]], list[int]]:
    """Joins pieces to a text, without blanks at its ends.

    Returns:
      the text, and the spans and the rows of its names. Blanks at the ends of a name are no part
      of its span, nor is an article that the text before it has already.
    """
    text, spans, rows = "", [], []
    for piece in pieces:
        own = piece.text if text else piece.text.lstrip()
        if piece.row is not None:
            if re.search(r"\b(?:the|a|an)\s+$", text, re.IGNORECASE):
                own = re.sub(r"^(?:the|an?)\s+(?=\w)", "", own, flags=re.IGNORECASE)
            stripped = own.strip()
            start = len(text) + own.index(stripped)
            spans.append((start, start + len(stripped)))
            rows.append(piece.row)
        text += own
    return text.rstrip(), spans, rows
