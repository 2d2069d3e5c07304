"""What a linker returns."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class Candidate:
    """One entity that a mention may mean.

    Attributes:
      entity: row of the catalogue.
      title: its title.
      wikidata_id: its Wikidata id, if the catalogue has one.
      score: joint log-probability of mention and entity.
    """

    entity: int
    title: str
    wikidata_id: str | None
    score: float


@dataclasses.dataclass(frozen=True, slots=True)
class Link:
    """One mention of a question and the entity it is linked to.

    Attributes:
      start: first character of the mention in the question.
      end: one past its last character.
      mention: text[start:end].
      title: of the entity.
      wikidata_id: of the entity, if the catalogue has one.
      entity: row of the catalogue.
      score: joint log-probability, log p(mention) + log p(entity | mention); what the original
        gives, with another `threshold_type` than "joint".
      mention_score: log p(mention).
      candidates: the best entities for the mention, the linked one first.
    """

    start: int
    end: int
    mention: str
    title: str
    wikidata_id: str | None
    entity: int
    score: float
    mention_score: float
    candidates: tuple[Candidate, ...]
