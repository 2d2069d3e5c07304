"""Defines the results of linking: links, their candidates, and scored spans before decoding."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from elq_jax.entities.catalogue import Catalogue
from elq_jax.text.tokenization import EncodedQuestion


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Confidence:
    """Holds what a `confidence.LinkScorer` says of n spans.

    Attributes:
      mentions: [n] float64, log-odds that the span is exactly a mention.
      links: [n] float64, log-probability that a link of the span to its first candidate is right.
      nil: [n] float64, log-probability that it is a mention of something outside the catalogue;
        None: not known.
      is_nil: [n] bool, whether this probability is high enough to say so; None: not known.
    """

    mentions: np.ndarray
    links: np.ndarray
    nil: np.ndarray | None = None
    is_nil: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class ScoredSpans:
    """Holds the spans of Q questions with their candidates, one row per span, n rows in all.

    Attributes:
      texts: texts of the Q questions.
      encoded: tokens of each question.
      question: [n] int32, number of the question that the span is of, ascending.
      window: [n] int32, number of the window of the question that the span was read in. Spans are
        compared with others of their window, so that in a long text the same decides as in a
        question.
      bounds: [n, 2] int32, first and last token (inclusive; [CLS] is 0).
      logits: [n] float32, span logits; inf for a span whose bounds the caller gave.
      scores: [n, C] float32, descending: inner products with the candidates, or what a
        `CandidateScorer` made of them. Their softmax is p(entity | mention).
      rows: [n, C] int32, catalogue rows of the candidates; -1 where the index found fewer than C.
      scored_at: threshold that spans had to pass to be searched for.
      confidence: probabilities of the spans, where the decoder wants them.
      catalogue: catalogue whose rows these are, also after another one has taken its place.
    """

    texts: Sequence[str]
    encoded: Sequence[EncodedQuestion]
    question: np.ndarray
    window: np.ndarray
    bounds: np.ndarray
    logits: np.ndarray
    scores: np.ndarray
    rows: np.ndarray
    scored_at: float
    confidence: Confidence | None = None
    catalogue: Catalogue | None = None


class Candidate(msgspec.Struct, frozen=True):
    """Describes one entity that a mention may mean.

    Attributes:
      row: row of the catalogue.
      title: title of the entity.
      wikidata_id: Wikidata id, if the catalogue has one.
      score: joint log-probability of mention and entity.
      id: id of the entity, which stays the same when the catalogue changes.
    """

    row: int
    title: str
    wikidata_id: str | None
    score: float
    id: str | None = None


class Link(msgspec.Struct, frozen=True):
    """Describes one mention of a question and the entity that it is linked to.

    Attributes:
      start: first character of the mention in the question.
      end: offset one past the mention's last character.
      mention: text of the mention, text[start:end].
      title: title of the entity; None: the mention is of something that is not in the catalogue.
      wikidata_id: Wikidata id of the entity, if the catalogue has one.
      row: row of the entity in the catalogue; None: as for `title`. Compacting changes it.
      score: score that the decoder compares with the threshold: the logarithm of `probability`, or
        the joint log-probability, log p(mention) + log p(entity | mention).
      mention_score: log p(mention); 0 for a mention whose place the caller gave.
      candidates: best entities for the mention, the linked one first, with their joint
        log-probabilities.
      probability: probability that the link is right, 0 to 1; None where the linker cannot say.
      id: id of the entity, which stays the same when the catalogue changes; None: as for `title`.
    """

    start: int
    end: int
    mention: str
    title: str | None
    wikidata_id: str | None
    row: int | None
    score: float
    mention_score: float
    candidates: tuple[Candidate, ...]
    probability: float | None = None
    id: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns the link as plain JSON values."""
        return msgspec.to_builtins(self)
