"""Finds the tokens of gold mentions from their character offsets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from elq_jax.questions.records import Question, Span
    from elq_jax.text.tokenization import EncodedQuestion


@dataclass(frozen=True, slots=True)
class MentionProblem:
    """Describes a gold mention, or a neutral span, that the tokens of its question cannot express.

    Attributes:
      kind: kind of the problem. The mention is left out if it is "misaligned" (a bound lies inside
        a token), "empty" (no token lies in it), "cut" (it lies beyond the part of the question that
        is read) or "no_offsets" (its character offsets are unknown). It stays in the gold if it is
        "shortened" (its end is cut) or "too_wide" (it has more tokens than the model can find). A
        neutral span that no tokens express is "neutral_left_out".
      question_id: id of the question.
      mention: number of the mention in the question.
      message: description of the problem for a person.
    """

    kind: Literal[
        "misaligned", "empty", "cut", "no_offsets", "shortened", "too_wide", "neutral_left_out"
    ]
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
    bounds, rows, problems = [], [], []

    def report(number: int, kind: str, reason: str) -> None:
        mention = question.mentions[number]
        place = _place(question, "mention", number, (mention.start, mention.end))
        problems.append(MentionProblem(kind, question.id, number, f"{place}: {reason}"))

    for number, mention in enumerate(question.mentions):
        tokens = _tokens_of((mention.start, mention.end), encoded)
        if mention.start < 0:
            report(number, "no_offsets", "its character offsets are unknown")
        elif isinstance(tokens, str):
            report(number, tokens, _reason(tokens, encoded))
        else:
            bounds.append(tokens)
            rows.append(mention.row)
            width = tokens[1] - tokens[0] + 1
            if max_width is not None and width > max_width:
                report(number, "too_wide", _too_wide(width, max_width))
    return AlignedMentions(
        np.array(bounds, np.int32).reshape(-1, 2), np.array(rows, np.int32), problems
    )


def align_neutral(
    question: Question, encoded: EncodedQuestion
) -> tuple[np.ndarray, list[MentionProblem]]:
    """Finds the tokens of the neutral spans of a question, as `align_mentions` those of mentions.

    Returns:
      [U, 2] int32, first and last token, both inclusive, and the problems of spans left out.
    """
    bounds, problems = [], []
    for number, span in enumerate(question.neutral):
        tokens = _tokens_of(span, encoded)
        if isinstance(tokens, str):
            place = _place(question, "neutral span", number, span)
            message = f"{place}: {_reason(tokens, encoded)}"
            problems.append(MentionProblem("neutral_left_out", question.id, number, message))
        else:
            bounds.append(tokens)
    return np.array(bounds, np.int32).reshape(-1, 2), problems


def _tokens_of(span: Span, encoded: EncodedQuestion) -> tuple[int, int] | str:
    """Returns the first and the last token of a span, or the kind of problem that it has."""
    starts, ends = encoded.offsets[:, 0], encoded.offsets[:, 1]
    touching = np.flatnonzero((starts < span[1]) & (ends > span[0]) & (ends > starts))
    if encoded.truncated_at is not None and span[1] > encoded.truncated_at:
        return "cut"
    if not touching.size:
        return "empty"
    if starts[touching[0]] < span[0] or ends[touching[-1]] > span[1]:
        return "misaligned"
    return int(touching[0]), int(touching[-1])


def _reason(kind: str, encoded: EncodedQuestion) -> str:
    if kind == "cut":
        return f"the question is cut at character {encoded.truncated_at}"
    return "no token lies in it" if kind == "empty" else "it begins or ends inside a token"


def _place(question: Question, noun: str, number: int, span: Span) -> str:
    quoted = question.text[slice(*span)] if span[0] >= 0 else ""
    return f"question {question.id}, {noun} {number} [{span[0]}, {span[1]}) {quoted[:60]!r}"


def _too_wide(width: int, max_width: int) -> str:
    return f"it has {width} tokens, more than max_mention_width = {max_width}; it is never found"
