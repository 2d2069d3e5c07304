"""Settings of synthetic questions, from which the flags of `synthesize` are made."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

import msgspec

from elq_jax.core.errors import ElqError

_Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


@dataclasses.dataclass(frozen=True)
class SynthesisSettings:
    """Settings of synthesis say how many questions are made, in which shapes and with what noise.

    Attributes:
      questions: number of questions to write.
      dev_questions: number of development questions to write, if a file for them is given.
      fit_questions: number of questions for fitting to write, if a file for them is given.
      seed: number that decides all random choices.
      neighbours: number of nearest entities that count as of one kind; at most a twentieth of the
        catalogue.
      queries: share of keyword queries: a name alone, with a word, with keywords, two names.
      several: share of questions with two or three names in place of one.
      chats: share of questions with what people write around them in a chat.
      fragments: share of questions without small words, as in "where honduras in the world?".
      aliases: share of names that are an alias, where an entity has one that nothing else has.
      no_capitals: share of questions in lower case.
      no_question_mark: share of questions without the question mark at the end.
      no_apostrophes: share of questions without apostrophes.
      typos: share of questions with a typo.
      symbols: share of questions with an emoji or a symbol beside a name, or glued to it.
      encoder: entity encoder of the catalogue's vectors, as in encode_entities; it encodes the
        entities that patterns come with.
      pooling: way in which a BERT checkpoint's tokens become one vector, as in encode_entities.
      normalize: whether vectors are scaled to unit length, as in encode_entities.
      max_tokens: number of tokens read of an entity, as in encode_entities.
    """

    questions: Annotated[int, msgspec.Meta(ge=1)] = 12000
    dev_questions: Annotated[int, msgspec.Meta(ge=1)] = 500
    fit_questions: Annotated[int, msgspec.Meta(ge=1)] = 2500
    seed: Annotated[int, msgspec.Meta(ge=0)] = 0
    neighbours: Annotated[int, msgspec.Meta(ge=1)] = 300
    queries: _Share = 0.25
    several: _Share = 0.08
    chats: _Share = 0.08
    fragments: _Share = 0.06
    aliases: _Share = 0.3
    no_capitals: _Share = 0.2
    no_question_mark: _Share = 0.3
    no_apostrophes: _Share = 0.3
    typos: _Share = 0.04
    symbols: _Share = 0.03
    encoder: Annotated[str, msgspec.Meta(min_length=1)] = "minilm"
    pooling: Literal["cls", "mean"] = "mean"
    normalize: bool = True
    max_tokens: Annotated[int, msgspec.Meta(ge=3)] = 128

    def __post_init__(self):
        total = self.queries + self.several + self.chats + self.fragments
        if total > 1:
            raise ElqError(
                f"queries, several, chats and fragments: found shares that add up to {total:g}; "
                "expected at most 1, the rest being questions as in the patterns"
            )
