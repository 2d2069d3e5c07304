"""Defines questions with gold mentions, and the one form of a JSON line that holds them.

A line that `elq_jax.link` writes is

    {"id": 1, "text": "who wrote dune?", "links": [{"start": 10, "end": 14, "mention": "dune",
     "title": "Dune (novel)", "wikidata_id": "Q190192", "row": 17, "score": -0.21, ...,
     "id": "Q190192"}]}

and is read as a labelled question. The id names the entity, also after the catalogue has changed. A
link of something that is not in the catalogue has neither title nor Wikidata id, and its row is
null. A shorter form, for people to write, is

    {"id": 1, "text": "who wrote dune?", "mentions": [[10, 14]], "title": ["Dune (novel)"]}

with any of `title`, `wikidata_id` and `row` (-1: not in the catalogue), which are lists with one
entry for each mention. The former names `entity` (title) and `label_id` (row) are read too. Offsets
are half-open and count characters.

A line may also have `neutral`, spans that may or may not be mentions, and `evaluation_span`, the
part of the text whose mentions are labelled, by default all of it:

    "neutral": [[4, 9]], "evaluation_span": [0, 15]

What is outside of the evaluation span is neutral too, and training does not see it. In training, a
neutral span is neither right nor wrong, unless it is a gold mention. In evaluation, neither are
links at neutral spans, see `evaluation.matching.QuestionResult.counted`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import msgspec

from elq_jax.core.errors import ElqError

OUT_OF_CATALOGUE = -1

UNKNOWN_OFFSET = -1

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Mention:
    """Describes one gold mention.

    Attributes:
      start: first character in the text of the question (Unicode code points); -1 if unknown,
        which happens in the EL4QA form only.
      end: offset one past the last character; -1 if unknown.
      row: row of the entity in the catalogue; -1 if it is not in there.
      title: title of the entity in the file.
      wikidata_id: Wikidata id of the entity in the file.
      entity_id: id of the entity in the file, which is the same in every catalogue with the entity.
    """

    start: int
    end: int
    row: int = OUT_OF_CATALOGUE
    title: str | None = None
    wikidata_id: str | None = None
    entity_id: str | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """Holds a question and its gold mentions, in the order of the file.

    Attributes:
      id: id in the file, or else the line number.
      text: text of the question.
      mentions: gold mentions; none if the file has no labels.
      token_ids: WordPiece ids in the EL4QA form, without [CLS] and [SEP], which replace the
        tokenizer's. None in the plain form.
      token_mentions: half-open positions in `token_ids` in the EL4QA form, one pair per mention.
      neutral: half-open character offsets of spans that may or may not be mentions. They may
        overlap each other and gold mentions; one that is a gold mention counts as that.
      left_out: labels of the file that are no gold mentions, each by the reason, such as
        "optional".
      evaluation_span: half-open character offsets of the part whose mentions are labelled; None:
        all of the text.
    """

    id: str
    text: str
    mentions: tuple[Mention, ...] = ()
    token_ids: tuple[int, ...] | None = None
    token_mentions: tuple[tuple[int, int], ...] | None = None
    neutral: tuple[Span, ...] = ()
    left_out: tuple[str, ...] = ()
    evaluation_span: Span | None = None


_Row = Annotated[int, msgspec.Meta(ge=OUT_OF_CATALOGUE, lt=2**31)]


class TextRow(msgspec.Struct, frozen=True):
    """Describes a JSON line with a question; other fields are ignored."""

    text: str
    id: str | int | float | None = None


class QuestionRow(TextRow, frozen=True):
    """Describes a JSON line with a question to be linked; other fields are ignored."""

    mentions: list[Span] | None = None


class LinkRow(msgspec.Struct, frozen=True):
    """Describes an entry of `links` in a JSON line: a gold mention; other fields are ignored."""

    start: int
    end: int
    mention: str | None = None
    title: str | None = None
    wikidata_id: str | None = None
    row: _Row | msgspec.UnsetType | None = msgspec.UNSET
    id: str | None = None


class LinksRow(msgspec.Struct, frozen=True):
    """Describes a JSON line with an object for each mention."""

    links: list[LinkRow]


class GoldLists(msgspec.Struct, frozen=True):
    """Describes a JSON line with parallel lists: titles, Wikidata ids or rows of its mentions."""

    title: list[str | None] | None = None
    wikidata_id: list[str | None] | None = None
    row: list[_Row | None] | None = None
    entity: list[str | None] | None = None  # former name of title
    label_id: list[_Row | None] | None = None  # former name of row


def check_spans(
    spans: Sequence[Span], name: str, size: int, unit: str, allow_overlaps: bool = False
) -> None:
    """Checks that spans are half-open, not empty, and inside [0, size).

    Args:
      spans: [start, end) pairs in any order.
      name: name of the field or argument, for messages.
      size: number of characters or tokens that spans lie in.
      unit: plural name of what spans count: "characters" or "tokens".
      allow_overlaps: whether spans may overlap.

    Raises:
      ElqError: a span is empty or outside, or two overlap.
    """
    for number, (start, end) in enumerate(spans):
        place = f"{name}[{number}] = [{start}, {end})"
        if start > end:
            raise ElqError(f"{place} is reversed: start is after end")
        if start < 0 or end > size:
            raise ElqError(f"{place} is out of range: the text has {size} {unit}")
        if start == end:
            raise ElqError(f"{place} is empty: end must be greater than start")
    if allow_overlaps:
        return
    for (first, first_end), (second, second_end) in itertools.pairwise(sorted(spans)):
        if second < first_end:
            raise ElqError(
                f"{name}: [{first}, {first_end}) and [{second}, {second_end}) overlap; expected "
                f"mentions that share no {unit}"
            )
