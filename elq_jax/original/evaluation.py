"""Counts correct links in the two ways of the original, so that results can be compared with it.

Both ways take labelled questions of the EL4QA form, use the token ids of the file and count in
token positions. For anything else use `elq_jax.evaluation.evaluate`, which counts in characters of
the question. The program `evaluate` finds the two as "elq_jax.original.evaluation:labelled" and
"elq_jax.original.evaluation:training".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from elq_jax.core.errors import ElqError
from elq_jax.evaluation.evaluate import EVALUATIONS, Outcome, describe_linker
from elq_jax.evaluation.matching import Counts, Triple, count_matches
from elq_jax.evaluation.options import Options, PathSet
from elq_jax.evaluation.sets import read_sets
from elq_jax.linking.linker import EntityLinker
from elq_jax.linking.links import ScoredSpans
from elq_jax.linking.scoring import BATCHES_IN_FLIGHT
from elq_jax.questions.records import Question
from elq_jax.storage import progress as progress_lib
from elq_jax.text.tokenization import EncodedQuestion
from elq_jax.text.windows import QuestionWindow, question_window

if TYPE_CHECKING:
    import rich.console

Paths = Sequence[PathSet]


@dataclasses.dataclass(frozen=True, slots=True)
class LinkedWindow:
    """The part of a question that the encoder saw, with its links.

    Attributes:
      question: question of the EL4QA form.
      window: tokens of that part, and the gold mentions inside it.
      predicted: links as (row, start, end), best score first; half-open positions in the window, in
        which [CLS] has position 0.
      scores: scores of these links.
    """

    question: Question
    window: QuestionWindow
    predicted: list[Triple]
    scores: list[float]

    @property
    def gold(self) -> list[Triple]:
        """Returns the gold mentions as (row, start, end), half-open positions in the window."""
        return self._gold(self.window.bounds, 1)

    @property
    def text_gold(self) -> list[Triple]:
        """Returns the gold mentions as the original prints them.

        While it cuts the window, the original overwrites positions of its questions. If it neither
        moved nor dropped a mention, positions count from the beginning of the window; otherwise
        from the beginning of the text.
        """
        order = self.window.order
        if order.tolist() == list(range(len(self.question.mentions))):
            return self._gold(self.window.bounds - [1, 1], 1)
        return self._gold(np.array(self.question.token_mentions)[order], 0)

    @property
    def text_predicted(self) -> list[Triple]:
        """Returns the links as the original prints them, in positions of `tokenized_text_ids`."""
        shift = self.window.offset - 1  # `tokenized_text_ids` has no [CLS].
        return [(row, start + shift, end + shift) for row, start, end in self.predicted]

    def _gold(self, bounds: np.ndarray, end_shift: int) -> list[Triple]:
        """Returns gold mentions at `bounds` as (row, start, end + `end_shift`)."""
        rows = (self.question.mentions[number].row for number in self.window.order)
        return [
            (row if row >= 0 else None, start, end + end_shift)
            for row, (start, end) in zip(rows, bounds.tolist(), strict=True)
        ]


@dataclasses.dataclass(frozen=True, slots=True)
class WindowCounts:
    """Counts of the original's evaluation of labelled questions.

    Gold mentions outside the window are not counted.

    Attributes:
      window: counts by positions in the window; these are the ones to compare with.
      text: counts that the original prints first. They are wrong, see `LinkedWindow.text_gold`: in
        a window that was cut on the left, nothing can match.
    """

    window: Counts
    text: Counts


def link_windows(
    linker: EntityLinker,
    questions: Sequence[Question],
    threshold: float | None = None,
    batch_size: int = 64,
    *,
    progress: Callable[[int], None] | None = None,
) -> list[LinkedWindow]:
    """Links questions of the EL4QA form as the original's evaluation does.

    Mentions may contain [CLS] or [SEP]. A question longer than `linker.max_question_tokens` is cut
    to a window around its gold mentions.

    Args:
      linker: linker that is measured.
      questions: questions with `token_ids` and `token_mentions`.
      threshold: score that links must exceed, instead of the linker's own.
      batch_size: number of questions encoded at a time.
      progress: function that is called with the number of questions just done.

    Returns:
      the window of each question with its links.

    Raises:
      ElqError: a question is not of the EL4QA form, or its token ids are of another vocabulary.
    """
    return _link(linker, questions, batch_size, progress, threshold, threshold)


def count_windows(linked: Sequence[LinkedWindow]) -> WindowCounts:
    """Counts correct links as the original's evaluation of labelled questions does."""
    return WindowCounts(
        sum((_counts(part.gold, part.predicted) for part in linked), Counts()),
        sum((_counts(part.text_gold, part.text_predicted) for part in linked), Counts()),
    )


DECODER = "elq_jax.original.decoding:original"

# Settings of the original's evaluation during training, whatever the linker's are.
IN_TRAINING = {"max_mentions": 50, "num_candidates": 10}
MENTION_THRESHOLD_IN_TRAINING, THRESHOLD_IN_TRAINING = -3.5, -2.5


def count_as_in_training(
    linker: EntityLinker,
    questions: Sequence[Question],
    batch_size: int = 64,
    *,
    progress: Callable[[int], None] | None = None,
) -> Counts:
    """Counts correct links as the original does while it trains with a frozen entity encoder.

    It takes at most 50 mentions with a log-probability above -3.5 and 10 candidates for each, and
    counts links with a score above -2.5, overlapping or not. Spans are compared one token shorter,
    so that a mention of one token is never weakly correct. The original reports the weak precision,
    recall and F1 of these counts.

    Args:
      linker: linker that is measured.
      questions: questions with `token_ids` and `token_mentions`, which may overlap.
      batch_size: number of questions encoded at a time.
      progress: function that is called with the number of questions just done.

    Raises:
      ElqError: as `link_windows` does.
    """
    thresholds = MENTION_THRESHOLD_IN_TRAINING, THRESHOLD_IN_TRAINING
    settings = {"threshold_type": "joint", "allow_overlaps": True}
    linker = linker.with_settings(**IN_TRAINING)
    linker = linker.with_settings(decoder=DECODER, decoder_settings=settings)
    linked = _link(linker, questions, batch_size, progress, *thresholds)
    counts = (_counts(shortened(part.gold), shortened(part.predicted)) for part in linked)
    return sum(counts, Counts())


def _link(
    linker: EntityLinker,
    questions: Sequence[Question],
    batch_size: int,
    progress: Callable[[int], None] | None,
    mention_threshold: float | None,
    threshold: float | None,
) -> list[LinkedWindow]:
    linker = linker.with_settings(
        decoder=DECODER, allow_special_tokens=True, special_tokens_in_text=True
    )
    linked: list[LinkedWindow] = []
    step = BATCHES_IN_FLIGHT * batch_size
    for start in range(0, len(questions), step):
        part = questions[start : start + step]
        windows = [_window(linker, question) for question in part]
        scored = _score(linker, part, windows, mention_threshold, batch_size)
        settings = linker.settings
        decoded = settings.decoding.decode(
            scored, settings.threshold if threshold is None else threshold
        )
        rows, bounds = decoded.rows[:, 0].tolist(), np.add(decoded.bounds, [0, 1]).tolist()
        triples = [(row, start, end) for row, (start, end) in zip(rows, bounds, strict=True)]
        scores = decoded.scores.tolist()
        for number, (question, window) in enumerate(zip(part, windows, strict=True)):
            links = decoded.of(number)
            linked.append(LinkedWindow(question, window, triples[links], scores[links]))
        if progress:
            progress(len(part))
    return linked


def _window(linker: EntityLinker, question: Question) -> QuestionWindow:
    if question.token_ids is None or question.token_mentions is None:
        raise ElqError(
            f"question {question.id}: no 'tokenized_text_ids'; --original needs files of the EL4QA "
            "form of the original's data sets; for other files leave --original out"
        )
    tokenizer = linker.tokenizer
    if max(question.token_ids) >= tokenizer.vocab_size:
        raise ElqError(
            f"question {question.id}: token id {max(question.token_ids)} in 'tokenized_text_ids', "
            f"but the linker's vocabulary has {tokenizer.vocab_size} tokens; use a linker with the "
            "tokenizer that the file was made with"
        )
    return question_window(
        question.token_ids,
        question.token_mentions,
        linker.max_question_tokens,
        cls_id=tokenizer.cls_id,
        sep_id=tokenizer.sep_id,
    )


def _score(
    linker: EntityLinker,
    questions: Sequence[Question],
    windows: Sequence[QuestionWindow],
    threshold: float | None,
    batch_size: int,
) -> ScoredSpans:
    encoded = [
        EncodedQuestion(
            window.ids, np.zeros((len(window.ids), 2), np.int32), np.arange(len(window.ids)), None
        )
        for window in windows
    ]
    texts = [question.text for question in questions]
    return linker.score_encoded(texts, encoded, threshold, batch_size)[0]


def _counts(gold: list[Triple], predicted: list[Triple]) -> Counts:
    return Counts(*count_matches(gold, predicted), len(predicted), len(gold))


def shortened(triples: Sequence[Triple]) -> list[Triple]:
    """Makes spans end one position earlier, so that a span of one token overlaps no other.

    The original's evaluation during training passes inclusive ends to a function that expects
    exclusive ends.
    """
    return [(row, start, end - 1) for row, start, end in triples]


class OriginalCounts(Outcome):
    """Counts of the original by name, which `evaluate` shows and writes."""

    def __init__(self, report: dict[str, Any], counts: dict[str, Counts]):
        for name, part in counts.items():
            report[name] = {"predicted": part.predicted, "gold": part.gold}
            report[name] |= {metric: part.scores(metric) for metric in ("weak", "strong")}
        super().__init__(report)
        self._counts = counts

    def print(self, console: rich.console.Console) -> None:
        """Prints the counts as a table."""
        from rich.table import Table

        table = Table("", "match", "correct", "predicted", "gold", "P", "R", "F1")
        for name, part in self._counts.items():
            for metric in ("weak", "strong"):
                correct, *rest = self.report[name][metric].values()
                shown = (f"{value:.4f}" for value in rest)
                table.add_row(name, metric, *map(str, (correct, part.predicted, part.gold)), *shown)
        console.print(table)


@EVALUATIONS.register("labelled")
def evaluate_labelled(
    linker: EntityLinker, questions: Paths, options: Options | None = None
) -> OriginalCounts:
    """Counts correct links as the original's evaluation of labelled questions; see `link_windows`.

    Raises:
      ElqError: a file cannot be used or is not of the EL4QA form, or `options.tune` is set.
    """
    options = options or Options()
    labelled, report = _read_questions(linker, questions, options)
    with progress_lib.progress("linking", len(labelled), "questions") as advance:
        linked = link_windows(
            linker, labelled, options.threshold, options.batch_size, progress=advance
        )
    counts = count_windows(linked)
    threshold = linker.settings.threshold if options.threshold is None else options.threshold
    report["threshold"] = threshold
    return OriginalCounts(report, {"window": counts.window, "text": counts.text})


@EVALUATIONS.register("training")
def evaluate_training(
    linker: EntityLinker, questions: Paths, options: Options | None = None
) -> OriginalCounts:
    """Counts correct links as the original's evaluation during training does.

    See `count_as_in_training`.

    Raises:
      ElqError: a file cannot be used or is not of the EL4QA form, or `options.tune` or
        `options.threshold` is set.
    """
    options = options or Options()
    if options.threshold is not None:
        raise ElqError(
            "--threshold: cannot be combined with --original=training, whose threshold is always "
            f"{THRESHOLD_IN_TRAINING}; leave --threshold out"
        )
    labelled, report = _read_questions(linker, questions, options)
    with progress_lib.progress("linking", len(labelled), "questions") as advance:
        counts = count_as_in_training(linker, labelled, options.batch_size, progress=advance)
    report |= IN_TRAINING | {"threshold_type": "joint", "threshold": THRESHOLD_IN_TRAINING}
    return OriginalCounts(report, {"training": counts})


def _read_questions(
    linker: EntityLinker, paths: Paths, options: Options
) -> tuple[list[Question], dict[str, Any]]:
    if options.tune:
        raise ElqError("--tune: cannot be combined with --original; give --threshold instead")
    if options.against is not None or options.perturb:
        raise ElqError("--against, --perturb: cannot be combined with --original; leave them out")
    sets = read_sets(
        linker.catalogue, paths, options.on_error, trust_rows=True, allow_overlaps=True
    )
    questions = [question for part in sets for question in part.questions]
    files = [file for part in sets for file in part.files]
    return questions, describe_linker(linker) | {"questions": files}
