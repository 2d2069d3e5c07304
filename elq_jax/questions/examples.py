"""Makes tokenised training examples from labelled questions."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from elq_jax.core.errors import ElqError
from elq_jax.questions.align import MentionProblem, _too_wide, align_mentions, align_neutral
from elq_jax.text.windows import QuestionWindow, question_window, sentence_starts, text_windows

if TYPE_CHECKING:
    from elq_jax.questions.records import Question
    from elq_jax.text.tokenization import EncodedQuestion, Tokenizer

_NO_LIMIT = 2**31

_SHOWN, _KEPT = 5, 100  # numbers of problems of each kind
_QUESTIONS_AT_ONCE = 1024  # tokenised together, on all cores


@dataclass(frozen=True, slots=True, eq=False)
class TrainingExample:
    """Holds one question to learn from.

    Attributes:
      ids: [T] int32, [CLS] ... [SEP], not padded.
      bounds: [M, 2] int32, gold mentions, inclusive.
      rows: [M] int32, their rows of the catalogue; -1 for an entity that is not in it.
      negatives: [M, N] int32, rows of wrong entities mined for each mention (-1: none); None if
        nothing was mined. All examples of a run have the same N.
      neutral: [U, 2] int32, inclusive bounds of spans that may or may not be mentions.
    """

    ids: np.ndarray
    bounds: np.ndarray
    rows: np.ndarray
    negatives: np.ndarray | None = None
    neutral: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), np.int32))


@dataclass
class AlignmentReport:
    """Counts problems with the mentions of labelled questions, and keeps the first of each kind.

    Attributes:
      examples: number of examples made.
      mentions: number of gold mentions in them.
      problems: problems of mentions left out, shortened or too wide: the first of each kind.
      left_out: ids of the first questions left out because none of their mentions could be used.
      linked: number of gold mentions in the examples whose entity is in the catalogue.
      counts: number of problems of each kind.
      num_left_out: number of questions left out.
      neutral: number of neutral spans in the examples.
    """

    examples: int = 0
    mentions: int = 0
    problems: list[MentionProblem] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    linked: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    num_left_out: int = 0
    neutral: int = 0

    def __post_init__(self):
        if not self.counts:
            self.counts.update(problem.kind for problem in self.problems)

    def add(self, problems: Iterable[MentionProblem]) -> None:
        """Counts problems, and keeps the first of each kind."""
        for problem in problems:
            self.counts[problem.kind] += 1
            if self.counts[problem.kind] <= _KEPT:
                self.problems.append(problem)

    def leave_out(self, question_id: str) -> None:
        """Counts a question left out because none of its mentions could be used."""
        self.num_left_out += 1
        if self.num_left_out <= _KEPT:
            self.left_out.append(question_id)

    def summary(self) -> str:
        """Returns a few lines for a person to read."""
        lines = [f"{self.examples:,} examples, {self.mentions:,} mentions"]
        if self.neutral:
            lines[0] += f", {self.neutral:,} neutral spans"
        for kind, number in sorted(self.counts.items()):
            lines.append(f"  {number:,} {kind.replace('_', ' ')}:")
            messages = [problem.message for problem in self.problems if problem.kind == kind]
            lines += [f"    {message}" for message in messages[:_SHOWN]]
            if number > _SHOWN:
                lines.append(f"    ... and {number - _SHOWN:,} more")
        if self.num_left_out:
            lines.append(
                f"  {self.num_left_out:,} questions left out, since none of their mentions can be "
                "used"
            )
        return "\n".join(lines)


def iter_examples(
    questions: Iterable[Question],
    tokenizer: Tokenizer,
    max_length: int,
    max_mention_width: int | None = None,
    report: AlignmentReport | None = None,
) -> Iterator[TrainingExample]:
    """Tokenises labelled questions and cuts long ones to windows around their mentions.

    A text that fits is one example. A longer one is cut to windows as in linking, see
    `text_windows`, and those are examples that have mentions, or all if the text has none. A
    mention in two windows is learned from both. Text outside of an `evaluation_span` is not shown.

    Token ids in the file of a question replace the tokenizer's; if there are too many, they are cut
    to one window, see `question_window`. A question is left out if none of its mentions can be
    used, since it would teach that it has no mentions.

    Args:
      questions: labelled questions, see `read_questions`; a thousand are held at a time.
      tokenizer: tokenizer of the question encoder.
      max_length: largest T.
      max_mention_width: number of tokens above which a mention is reported, since only linking is
        learned from it; None: no limit.
      report: report that is filled while examples are made.

    Raises:
      ElqError: token ids are not of this vocabulary, or `max_length` is below 3.
    """
    report = AlignmentReport() if report is None else report
    questions = iter(questions)
    while part := list(itertools.islice(questions, _QUESTIONS_AT_ONCE)):
        plain = [question.text for question in part if question.token_ids is None]
        encoded = iter(tokenizer.encode_questions(plain, _NO_LIMIT))
        for question in part:
            neutral = np.zeros((0, 2), np.int32)
            marks = tokenizer.cls_id, tokenizer.sep_id
            if question.token_ids is None:
                tokens = next(encoded)
                spans, numbers = _aligned(question, tokens, report)
                neutral, problems = align_neutral(question, tokens)
                report.add(problems)
                overlap = (max_mention_width or max_length) - 1
                windows = _windows(question, tokens, spans, max_length, overlap, *marks)
            else:
                token_ids, spans = _of_file(question, tokenizer.vocab_size)
                numbers = list(range(len(question.mentions)))
                windows = [question_window(token_ids, spans, max_length, *marks)]
            report.add(
                _window_problems(question, numbers, spans, windows, max_length, max_mention_width)
            )
            if question.mentions and not any(len(window.order) for window in windows):
                report.leave_out(question.id)
                continue
            for window in windows:
                yield _example(question, numbers, neutral, window, report)


def _example(
    question: Question,
    numbers: list[int],
    neutral: np.ndarray,
    window: QuestionWindow,
    report: AlignmentReport,
) -> TrainingExample:
    """Makes an example of a window, and counts it."""
    rows = [question.mentions[numbers[place]].row for place in window.order]
    neutral = neutral - window.offset
    is_inside = (neutral[:, 0] >= 1) & (neutral[:, 1] <= len(window.ids) - 2)
    report.examples += 1
    report.mentions += len(rows)
    report.linked += sum(row >= 0 for row in rows)
    report.neutral += int(is_inside.sum())
    rows = np.array(rows, np.int32)
    return TrainingExample(window.ids, window.bounds, rows, neutral=neutral[is_inside])


def _windows(
    question: Question,
    encoded: EncodedQuestion,
    spans: np.ndarray,
    max_length: int,
    overlap: int,
    cls_id: int,
    sep_id: int,
) -> list[QuestionWindow]:
    """Cuts the tokens of a question to windows; see `iter_examples`.

    Args:
      question: question.
      encoded: its tokens.
      spans: [M, 2] int, half-open positions of mentions among the tokens without [CLS] and [SEP].
      max_length: largest T.
      overlap: number of tokens that two windows share, at least.
      cls_id, sep_id: ids of [CLS] and [SEP].
    """
    ids, offsets = encoded.ids[1:-1], encoded.offsets[1:-1]
    start, end = question.evaluation_span or (0, len(question.text))
    inside = np.flatnonzero((offsets[:, 0] >= start) & (offsets[:, 1] <= end))
    first, stop = (int(inside[0]), int(inside[-1]) + 1) if len(inside) else (0, 0)
    is_inside = (spans[:, 0] >= first) & (spans[:, 1] <= stop)
    places = np.flatnonzero(is_inside)
    if stop - first <= max_length - 2:
        window = question_window(ids[first:stop], spans[places] - first, max_length, cls_id, sep_id)
        return [window._replace(order=places[window.order], offset=first + window.offset)]
    breaks = sentence_starts(question.text, encoded.offsets) - first
    windows = []
    for cut in text_windows([stop - first + 2], [breaks[breaks > 1]], max_length, overlap):
        offset, end = first + cut.start - 1, first + cut.stop - 1
        own = places[(spans[places, 0] >= offset) & (spans[places, 1] <= end)]
        own = own[np.lexsort(spans[own].T[::-1])]
        sums = spans[own].sum(axis=1) + 1 - 2 * first  # of first and last, as of `cut`
        if len(spans) and not ((sums > cut.low) & (sums <= cut.high)).any():
            continue
        bounds = (spans[own] - offset + [1, 0]).astype(np.int32)
        window_ids = np.array([cls_id, *ids[offset:end], sep_id], np.int32)
        windows.append(QuestionWindow(window_ids, bounds, own, offset))
    return windows


def _aligned(
    question: Question, encoded: EncodedQuestion, report: AlignmentReport
) -> tuple[np.ndarray, list[int]]:
    """Returns half-open spans of mentions, in tokens without [CLS] and [SEP], and their numbers."""
    aligned = align_mentions(question, encoded)
    report.add(aligned.problems)
    refused = {problem.mention for problem in aligned.problems}
    numbers = [n for n in range(len(question.mentions)) if n not in refused]
    return aligned.bounds - [1, 0], numbers


def _of_file(question: Question, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the tokens of a question and the spans of its mentions that are in its file."""
    token_ids = np.array(question.token_ids, np.int32)
    if token_ids.max() >= vocab_size:
        raise ElqError(
            f"question {question.id}: token id {token_ids.max()} in 'tokenized_text_ids', "
            f"but the vocabulary has {vocab_size} tokens; use the tokenizer that the file was made "
            "with, or remove the tokenized fields from the file"
        )
    return token_ids, np.array(question.token_mentions, np.int64).reshape(-1, 2)


def _window_problems(
    question: Question,
    numbers: list[int],
    spans: np.ndarray,
    windows: Sequence[QuestionWindow],
    max_length: int,
    max_width: int | None,
) -> list[MentionProblem]:
    bounds_in_window: dict[int, list[int]] = {}
    for window in windows:
        bounds_in_window |= dict(zip(window.order.tolist(), window.bounds.tolist(), strict=True))
    problems = []
    for place, number in enumerate(numbers):
        start, end = spans[place].tolist()
        first, last = bounds_in_window.get(place, (0, -1))
        if place not in bounds_in_window:
            kind = "cut"
            reason = f"it is in no window of {max_length} tokens"
        elif last - first + 1 < end - start:
            kind, reason = "shortened", f"its {end - start} tokens do not fit in {max_length}"
        elif max_width is not None and end - start > max_width:
            kind, reason = "too_wide", _too_wide(end - start, max_width)
        else:
            continue
        message = f"question {question.id}, mention {number}: {reason}"
        problems.append(MentionProblem(kind, question.id, number, message))
    return problems


class Examples(Protocol):
    """Gives random access to training examples, in a list or on disk.

    Examples on disk also have attributes `mention_counts` and `neutral_counts`, [len] int32, so
    that the functions of these names need not read the examples.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> TrainingExample: ...


def mention_counts(examples: Examples) -> np.ndarray:
    """Counts the gold mentions of each example, int64 [len(examples)]."""
    counts = getattr(examples, "mention_counts", None)
    if counts is None:
        counts = [len(examples[number].rows) for number in range(len(examples))]
    return np.asarray(counts, np.int64)


def neutral_counts(examples: Examples) -> np.ndarray:
    """Counts the neutral spans of each example, int64 [len(examples)]."""
    counts = getattr(examples, "neutral_counts", None)
    if counts is None:
        counts = [len(examples[number].neutral) for number in range(len(examples))]
    return np.asarray(counts, np.int64)


class ExamplesWithNegatives(Sequence[TrainingExample]):
    """Puts mined negatives, which are one array, beside examples.

    Attributes:
      negatives: [mentions of all examples, N] int32, in the order of the examples.
      mention_counts: [len] int64, number of gold mentions of each example.
      neutral_counts: [len] int64, number of neutral spans of each example.
    """

    def __init__(self, examples: Examples, negatives: np.ndarray):
        """Puts examples and negatives [mentions, N] together.

        Raises:
          ElqError: the negatives are of another number of mentions.
        """
        self._examples, self.negatives = examples, negatives
        self.mention_counts = mention_counts(examples)
        self.neutral_counts = neutral_counts(examples)
        self._ends = np.cumsum(self.mention_counts)
        mentions = int(self.mention_counts.sum())
        if len(negatives) != mentions:
            raise ElqError(
                f"found negatives for {len(negatives)} mentions, expected {mentions}; they were "
                "mined for other examples: remove the file and mine again"
            )

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, number: int) -> TrainingExample:
        example = self._examples[number]
        end = int(self._ends[number])
        return replace(example, negatives=self.negatives[end - len(example.rows) : end])
