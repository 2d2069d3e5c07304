"""Finds the tokens of gold mentions from their character offsets."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from elq_jax.questions.records import Question
    from elq_jax.text.tokenization import EncodedQuestion


@dataclass(frozen=True, slots=True)
class MentionProblem:
    """Describes a gold mention that the tokens of its question cannot express.

    Attributes:
      kind: kind of the problem. The mention is left out if it is "misaligned" (a bound lies inside
        a token), "empty" (no token lies in it), "cut" (it lies beyond the part of the question that
        is read) or "no_offsets" (its character offsets are unknown). It stays in the gold if it is
        "shortened" (its end is cut) or "too_wide" (it has more tokens than the model can find).
      question_id: id of the question.
      mention: number of the mention in the question.
      message: description of the problem for a person.
    """

    kind: Literal["misaligned", "empty", "cut", "no_offsets", "shortened", "too_wide"]
    question_id: str
    mention: int
    message: str

    @property
    def is_left_out(self) -> bool:
        """Returns whether the mention is left out of the gold."""
        return self.kind not in ("shortened", "too_wide")


class AlignedMentions(NamedTuple):
    """Holds gold mentions as token positions.

    Attributes:
      bounds: [M, 2] int32, first and last token, both inclusive, [CLS] = 0.
      rows: [M] int32, rows of the catalogue; -1 for an entity that is not in it.
      problems: problems of the mentions that are missing from `bounds` or too wide.
    """

    bounds: np.ndarray
    rows: np.ndarray
    problems: list[MentionProblem]


def align_mentions(
    question: Question, encoded: EncodedQuestion, max_width: int | None = None
) -> AlignedMentions:
    """Finds the tokens of each mention from its character offsets, in the order of the question.

    A mention is aligned if every token that touches it lies inside it, so blanks at its ends do no
    harm. Bounds are never moved to the next token: a mention that is not aligned is a problem.

    Args:
      question: question with character offsets of its mentions.
      encoded: tokens of the question.
      max_width: number of tokens above which a mention is reported; None: no limit.
    """
    starts, ends = encoded.offsets[:, 0], encoded.offsets[:, 1]
    cut_at = math.inf if encoded.truncated_at is None else encoded.truncated_at
    bounds, rows, problems = [], [], []

    def report(number: int, kind: str, reason: str) -> None:
        mention = question.mentions[number]
        quoted = question.text[mention.start : mention.end] if mention.start >= 0 else ""
        place = f"mention {number} [{mention.start}, {mention.end}) {quoted[:60]!r}"
        message = f"question {question.id}, {place}: {reason}"
        problems.append(MentionProblem(kind, question.id, number, message))

    for number, mention in enumerate(question.mentions):
        touching = np.flatnonzero((starts < mention.end) & (ends > mention.start) & (ends > starts))
        if mention.start < 0:
            report(number, "no_offsets", "its character offsets are unknown")
        elif mention.end > cut_at:
            report(number, "cut", f"the question is cut at character {cut_at}")
        elif not touching.size:
            report(number, "empty", "no token lies in it")
        elif starts[touching[0]] < mention.start or ends[touching[-1]] > mention.end:
            report(number, "misaligned", "it begins or ends inside a token")
        else:
            bounds.append((touching[0], touching[-1]))
            rows.append(mention.row)
            if max_width is not None and len(touching) > max_width:
                report(number, "too_wide", _too_wide(len(touching), max_width))
    return AlignedMentions(
        np.array(bounds, np.int32).reshape(-1, 2), np.array(rows, np.int32), problems
    )


def _too_wide(width: int, max_width: int) -> str:
    return f"it has {width} tokens, more than max_mention_width = {max_width}; it is never found"
