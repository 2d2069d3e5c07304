"""Questions and their gold mentions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass

OUT_OF_CATALOGUE = -1

UNKNOWN_OFFSET = -1


@dataclass(frozen=True, slots=True)
class Mention:
    """One gold mention.

    Attributes:
      start: first character in the text of the question (Unicode code points); -1 if unknown,
        which happens in the EL4QA form only.
      end: one past the last character; -1 if unknown.
      row: row of the entity in the catalogue; -1 if it is not in there.
      title: title of the entity, as the file has it.
      wikidata_id: Wikidata id of the entity, as the file has it.
    """

    start: int
    end: int
    row: int = OUT_OF_CATALOGUE
    title: str | None = None
    wikidata_id: str | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """A question and its gold mentions, in the order of the file.

    Attributes:
      id: the file's, or else the line number.
      text: the question.
      mentions: gold mentions; empty as well where a file has no labels.
      token_ids: EL4QA form: WordPiece ids without [CLS] and [SEP], which the original uses as they
        are. None in the plain form.
      token_mentions: EL4QA form: half-open positions in `token_ids`, one pair for each mention.
    """

    id: str
    text: str
    mentions: tuple[Mention, ...] = ()
    token_ids: tuple[int, ...] | None = None
    token_mentions: tuple[tuple[int, int], ...] | None = None
