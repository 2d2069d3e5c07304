"""Labelled questions -> tokenised training examples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from elq_jax.core.errors import ElqError

if TYPE_CHECKING:
    from elq_jax.questions.records import Question
    from elq_jax.text.tokenization import Tokenizer
from elq_jax.questions.align import MentionProblem, _too_wide, align_mentions
from elq_jax.text.windows import QuestionWindow, question_window

_NO_LIMIT = 2**31

_SHOWN = 5


@dataclass(frozen=True, slots=True, eq=False)
class TrainingExample:
    """One question to learn from.

    Attributes:
      ids: [T] int32, [CLS] ... [SEP], not padded.
      bounds: [M, 2] int32, gold mentions, inclusive.
      rows: [M] int32, their rows of the catalogue, -1 = not in there.
      negatives: [M, N] int32, rows of wrong entities mined for each mention (-1: none); None where
        none were mined. All examples of a run have the same N.
    """

    ids: np.ndarray
    bounds: np.ndarray
    rows: np.ndarray
    negatives: np.ndarray | None = None


@dataclass
class AlignmentReport:
    """What `make_examples` could not take as it was.

    Attributes:
      examples: number of examples made.
      mentions: number of gold mentions in them.
      problems: one for each mention that is missing from them, shortened or too wide.
      left_out: ids of questions that have mentions, of which none could be used.
    """

    examples: int = 0
    mentions: int = 0
    problems: list[MentionProblem] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    @property
    def counts(self) -> Counter[str]:
        """Number of problems of each kind."""
        return Counter(problem.kind for problem in self.problems)

    def summary(self) -> str:
        """A few lines for a person to read."""
        lines = [f"{self.examples:,} examples, {self.mentions:,} mentions"]
        for kind, number in sorted(self.counts.items()):
            lines.append(f"  {number:,} {kind}:")
            messages = [problem.message for problem in self.problems if problem.kind == kind]
            lines += [f"    {message}" for message in messages[:_SHOWN]]
            if number > _SHOWN:
                lines.append(f"    ... and {number - _SHOWN:,} more")
        if self.left_out:
            lines.append(f"  {len(self.left_out):,} questions left out, no mention could be used")
        return "\n".join(lines)


def make_examples(
    questions: Sequence[Question],
    tokenizer: Tokenizer,
    max_length: int,
    max_mention_width: int | None = None,
) -> tuple[list[TrainingExample], AlignmentReport]:
    """Tokenizes labelled questions and cuts them to windows around their mentions.

    The token ids of the EL4QA form are used as they are. A question none of whose mentions can be
    used is left out: it would teach that its mentions are none.

    Args:
      questions: see `read_questions`.
      tokenizer: of the question encoder.
      max_length: largest T, see `question_window`.
      max_mention_width: report mentions of more tokens, from which only linking is learned; None:
        do not.

    Raises:
      ElqError: token ids that are not of this vocabulary; `max_length` below 3.
    """
    report = AlignmentReport()
    plain = [question for question in questions if question.token_ids is None]
    encoded = iter(tokenizer.encode_questions([q.text for q in plain], _NO_LIMIT))
    examples = []
    for question in questions:
        if question.token_ids is None:
            tokens = next(encoded)
            token_ids = tokens.ids[1:-1]
            aligned = align_mentions(question, tokens)
            refused = {problem.mention for problem in aligned.problems}
            numbers = [n for n in range(len(question.mentions)) if n not in refused]
            spans = aligned.bounds - [1, 0]  # half-open, without [CLS]
            report.problems += aligned.problems
        else:
            token_ids = np.array(question.token_ids, np.int32)
            if token_ids.max() >= tokenizer.vocab_size:
                raise ElqError(
                    f"question {question.id}: token id {token_ids.max()} in 'tokenized_text_ids', "
                    f"but the vocabulary has {tokenizer.vocab_size}; use the tokenizer the file "
                    "was made with, or remove the tokenized fields"
                )
            numbers = list(range(len(question.mentions)))
            spans = np.array(question.token_mentions, np.int64).reshape(-1, 2)

        window = question_window(
            token_ids, spans, max_length, cls_id=tokenizer.cls_id, sep_id=tokenizer.sep_id
        )
        kept = [numbers[place] for place in window.order]
        report.problems += _window_problems(
            question, numbers, spans, window, max_length, max_mention_width
        )
        if question.mentions and not kept:
            report.left_out.append(question.id)
            continue
        rows = np.array([question.mentions[number].row for number in kept], np.int32)
        examples.append(TrainingExample(window.ids, window.bounds, rows))
        report.mentions += len(kept)
    report.examples = len(examples)
    return examples, report


def _window_problems(
    question: Question,
    numbers: list[int],
    spans: np.ndarray,
    window: QuestionWindow,
    max_length: int,
    max_width: int | None,
) -> list[MentionProblem]:
    kept = dict(zip(window.order.tolist(), window.bounds.tolist(), strict=True))
    problems = []
    for place, number in enumerate(numbers):
        start, end = spans[place].tolist()
        if place not in kept:
            kind, reason = "cut", f"it does not fit {max_length} tokens with the ones before it"
        elif kept[place][1] - kept[place][0] + 1 < end - start:
            kind, reason = "shortened", f"its {end - start} tokens do not fit {max_length}"
        elif max_width is not None and end - start > max_width:
            kind, reason = "too_wide", _too_wide(end - start, max_width)
        else:
            continue
        message = f"question {question.id}, mention {number}: {reason}"
        problems.append(MentionProblem(kind, question.id, number, message))
    return problems


class Examples(Protocol):
    """Random access to training examples: a list, or something that reads them from disk."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> TrainingExample: ...
