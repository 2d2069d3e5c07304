"""Writes links as ELEVANT reads predictions: its format "simple-jsonl"."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from elq_jax.linking.lines import line_piece

if TYPE_CHECKING:
    from elq_jax.linking.links import Candidate, Link
    from elq_jax.linking.rows import Linked


def to_line(linked: Linked) -> bytes:
    """Returns a row and its links as a line of simple-jsonl, or of a long row its next piece.

    ELEVANT reads `predictions` alone, and takes lines for documents by their order. So a row that
    cannot be used has a line as well, without predictions.

    Example:
      {"id": 1, "text": "who wrote dune?", "predictions": [{"entity_reference": "Q190192",
       "start_char": 10, "end_char": 14, "candidates": ["Q190192", "Q1193612"]}]}

    Source: `SimpleJsonlPredictionReader` in github.com/ad-freiburg/elevant.
    """
    row = linked.row
    values: dict[str, Any] = {"id": row.id}
    values |= {"text": row.text} if row.error is None else {"error": row.error}
    predictions = [
        {
            "entity_reference": reference(link),
            "start_char": link.start,
            "end_char": link.end,
            "candidates": [reference(candidate) for candidate in link.candidates],
        }
        for link in linked.links
    ]
    return line_piece(linked, values, "predictions", predictions)


def reference(entity: Link | Candidate) -> str | None:
    """Returns what ELEVANT finds an entity by.

    That is its Wikidata id, or else the address of its English Wikipedia article, from which
    ELEVANT takes the title. A bare title would do for most, but not with a slash or as "Q5". None
    is an entity that is not in the catalogue.
    """
    if entity.wikidata_id:
        return entity.wikidata_id.rpartition("/")[2]
    if entity.title is None:
        return None
    return "http://en.wikipedia.org/wiki/" + quote(entity.title.replace(" ", "_"), safe="")


def is_named_by_title(link: Link) -> bool:
    """Returns whether ELEVANT must look up the entity of a link by its title."""
    return link.title is not None and not link.wikidata_id
