"""Links texts of any length: one that the model cannot read at once is linked in parts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from elq_jax.text.windows import parts_to_read, sentences_of

if TYPE_CHECKING:
    from elq_jax.linking.linker import EntityLinker
    from elq_jax.linking.links import Link
    from elq_jax.text.tokenization import EncodedQuestion

Span = tuple[int, int]  # half-open character offsets

_CHARACTERS_PER_TOKEN = 32  # at most, in a part; words are seldom longer


def parts_of(
    linker: EntityLinker,
    text: str,
    sentences: Sequence[Span] = (),
    mentions: Sequence[Span] = (),
) -> list[Span]:
    """Cuts a text into parts that the model reads to their ends.

    A text that fits is one part. Of a longer one, each sentence is a part, or several if it does
    not fit either.

    Args:
      linker: linker whose model reads the text.
      text: text.
      sentences: sentences of the text in order; empty: they are found by their punctuation.
      mentions: spans that are not cut, as far as they fit.
    """

    def read(part: str) -> int | None:
        return linker.encode([part])[0].truncated_at

    if read(text) is None:
        return [(0, len(text))]
    longest = _CHARACTERS_PER_TOKEN * linker.max_question_tokens
    parts = []
    for start, end in sentences or sentences_of(text, mentions):
        whole = [(first - start, last - start) for first, last in mentions]
        for part in parts_to_read(text[start:end], read, longest=longest, whole=whole):
            parts.append((start + part[0], start + part[1]))
    return parts


def link_parts(
    linker: EntityLinker,
    texts: Sequence[str],
    parts: Sequence[Sequence[Span]],
    batch_size: int = 64,
    min_probability: float | None = None,
) -> list[list[Link]]:
    """Links texts in parts, all parts together.

    Args:
      linker: linker.
      texts: texts.
      parts: parts of each text, which do not overlap.
      batch_size: number of parts encoded at a time.
      min_probability: probability that links must have, instead of the linker's threshold.

    Returns:
      links of each text in its own offsets, in their order.
    """
    strings = strings_of(texts, parts)
    results = iter(linker(strings, batch_size=batch_size, min_probability=min_probability))
    return [[moved(link, start) for start, _ in own for link in next(results)] for own in parts]


def link_mentions(
    linker: EntityLinker,
    texts: Sequence[str],
    parts: Sequence[Sequence[Span]],
    mentions: Sequence[Sequence[Span]],
    batch_size: int = 64,
) -> list[list[Link | None]]:
    """Links mentions whose places are known.

    A mention that begins or ends inside a token of the model is read with the whole token.

    Args:
      linker: linker.
      texts: texts.
      parts: parts of each text, which do not overlap.
      mentions: mentions of each text.
      batch_size: number of parts encoded at a time.

    Returns:
      a link for each mention, with the mention's own offsets; None if no part has the whole
      mention, or no token of the model lies in it.
    """
    placed = place_mentions(linker, texts, parts, mentions)
    results = linker.disambiguate(placed.strings, placed.spans, batch_size)
    return placed.gather(results)


@dataclasses.dataclass(frozen=True)
class PlacedMentions:
    """Says which mentions of texts are to be linked in which part.

    Attributes:
      texts: texts.
      mentions: mentions of each text.
      strings: texts of the parts.
      spans: spans to link in each part: whole tokens.
      places: text and mention that each span stands for.
    """

    texts: Sequence[str]
    mentions: Sequence[Sequence[Span]]
    strings: Sequence[str]
    spans: Sequence[Sequence[Span]]
    places: Sequence[Sequence[tuple[int, int]]]

    def gather(self, results: Sequence[Sequence[Link]]) -> list[list[Link | None]]:
        """Returns the links of the mentions of each text.

        Args:
          results: links of the spans of each part.
        """
        links: list[list[Link | None]] = [[None] * len(own) for own in self.mentions]
        for places, part_links in zip(self.places, results, strict=True):
            for (number, place), link in zip(places, part_links, strict=True):
                start, end = self.mentions[number][place]
                links[number][place] = msgspec.structs.replace(
                    link, start=start, end=end, mention=self.texts[number][start:end]
                )
        return links


def place_mentions(
    linker: EntityLinker,
    texts: Sequence[str],
    parts: Sequence[Sequence[Span]],
    mentions: Sequence[Sequence[Span]],
) -> PlacedMentions:
    """Finds the part, and the tokens in it, of each mention; see `link_mentions`."""
    strings = strings_of(texts, parts)
    encoded = iter(linker.encode(strings))
    spans: list[list[Span]] = []
    places: list[list[tuple[int, int]]] = []
    for number, own in enumerate(parts):
        for start, end in own:
            inside = {
                place: _whole_tokens(tokens, first - start, last - start)
                for tokens in [next(encoded)]
                for place, (first, last) in enumerate(mentions[number])
                if start <= first and last <= end
            }
            spans.append([span for span in inside.values() if span])
            places.append([(number, place) for place, span in inside.items() if span])
    return PlacedMentions(texts, mentions, strings, spans, places)


def strings_of(texts: Sequence[str], parts: Sequence[Sequence[Span]]) -> list[str]:
    """Returns the texts of the parts of all texts, in their order."""
    return [text[start:end] for text, own in zip(texts, parts, strict=True) for start, end in own]


def _whole_tokens(encoded: EncodedQuestion, start: int, end: int) -> Span | None:
    """Returns the characters from the first to the last token that a span touches, if any."""
    offsets = encoded.offsets[1:-1]
    is_touched = (offsets[:, 0] < end) & (offsets[:, 1] > start) & (start < end)
    tokens = np.flatnonzero(is_touched)
    return (int(offsets[tokens[0], 0]), int(offsets[tokens[-1], 1])) if len(tokens) else None


def moved(link: Link, offset: int) -> Link:
    """Returns a link of a part with the offsets that it has in the text."""
    if not offset:
        return link
    return msgspec.structs.replace(link, start=link.start + offset, end=link.end + offset)
