"""Links texts of any length in bounded memory: cuts them to parts, and joins the links of these.

A text that is short enough is one part, which is linked as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Generic, NamedTuple, TypeVar

import msgspec

from elq_jax.linking.decoding import Decoder
from elq_jax.linking.links import Link
from elq_jax.text.windows import PART_CHARACTERS, TextPart, text_parts

T = TypeVar("T")


class Part(NamedTuple, Generic[T]):
    """A part of a text that waits to be linked.

    Attributes:
      owner: what the text belongs to, such as a row of a file.
      text: the part.
      place: where it is in the whole text.
      is_first: whether it is the first part of the text.
      is_last: whether it is the last one.
    """

    owner: T
    text: str
    place: TextPart
    is_first: bool
    is_last: bool


def parts_of(owners: Iterable[tuple[T, str]], decoder: Decoder) -> Iterator[Part[T]]:
    """Cuts texts to parts, see `text_parts`.

    Args:
      owners: pairs of an owner and its text.
      decoder: decoder that the texts are linked with; one that reads no windows gets them whole.
    """
    for owner, text in owners:
        longest = PART_CHARACTERS if decoder.reads_windows else len(text)
        places = text_parts(text, longest)
        for number, place in enumerate(places):
            own = text if len(places) == 1 else text[place.start : place.stop]
            yield Part(owner, own, place, number == 0, number == len(places) - 1)


def length_of(part: Part) -> int:
    """Returns the number of characters of a part."""
    return len(part.text)


class Joiner:
    """Joins the links of the parts of texts, so that no two of a text share a character."""

    def __init__(self) -> None:
        self._held: list[Link] = []  # The last link, until the next part is linked.

    def add(self, part: Part, links: Sequence[Link]) -> list[Link]:
        """Takes the links of the next part.

        Args:
          part: part of a text, after all those before it.
          links: its links, with offsets in the part, in their order, without overlaps.

        Returns:
          the next links of the text, with offsets there. Where links of two parts share a
          character, the one with the higher score is left, and of equal scores the first.
        """
        if part.is_first and part.is_last:
            return list(links)
        joined, place = self._held, part.place
        for link in links:
            start, end = link.start + place.start, link.end + place.start
            if not place.low < start + end <= place.high:
                continue
            while joined and joined[-1].end > start and joined[-1].score < link.score:
                joined.pop()
            if not joined or joined[-1].end <= start:
                joined.append(msgspec.structs.replace(link, start=start, end=end))
        self._held = [] if part.is_last else joined[-1:]
        return joined[: len(joined) - len(self._held)]
