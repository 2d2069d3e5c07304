"""Links labelled questions once, at a low threshold, so that they can be counted at any other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from elq_jax.evaluation.matching import Gold, Predicted, QuestionResult
from elq_jax.evaluation.scores import Evaluation
from elq_jax.linking.linker import EntityLinker
from elq_jax.linking.scoring import BATCHES_IN_FLIGHT
from elq_jax.questions.align import AlignedMentions, MentionProblem, align_mentions
from elq_jax.questions.records import Question


def predict(
    linker: EntityLinker,
    questions: Sequence[Question],
    threshold: float,
    *,
    batch_size: int = 64,
    at_gold_spans: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Links labelled questions at a low threshold; each is tokenised and encoded once.

    Args:
      linker: linker to measure.
      questions: labelled questions, with character offsets of their gold mentions.
      threshold: score that predictions must exceed; the lowest threshold to count at later.
      batch_size: number of questions encoded at a time.
      at_gold_spans: whether candidates are also retrieved for the gold spans (disambiguation).
      progress: function called with the number of questions just done.

    Returns:
      the predictions and the gold, ready to be counted.
    """
    results: list[QuestionResult] = []
    problems: list[MentionProblem] = []
    step = BATCHES_IN_FLIGHT * batch_size
    for start in range(0, len(questions), step):
        part = questions[start : start + step]
        texts = [question.text for question in part]
        encoded = linker.encode(texts)
        aligned = [_align(linker, *pair) for pair in zip(part, encoded, strict=True)]
        bounds = [mentions.bounds for mentions in aligned] if at_gold_spans else None
        scored, scored_gold = linker.score_encoded(texts, encoded, threshold, batch_size, bounds)
        candidates = (
            _of_mentions(part, aligned, scored_gold.rows) if at_gold_spans else [None] * len(part)
        )
        for question, links, rows in zip(
            part, linker.decode(scored, threshold), candidates, strict=True
        ):
            gold = tuple(Gold(m.start, m.end, m.row, m.title) for m in question.mentions)
            predicted = tuple(
                Predicted(
                    link.start,
                    link.end,
                    -1 if link.row is None else link.row,
                    link.score,
                    tuple(candidate.row for candidate in link.candidates),
                    link.probability,
                )
                for link in links
            )
            labels = question.id, question.text, gold, predicted, rows, question.neutral
            results.append(QuestionResult(*labels))
        problems += [problem for mentions in aligned for problem in mentions.problems]
        if progress:
            progress(len(part))
    return Evaluation(results, threshold, problems)


def _align(linker: EntityLinker, question: Question, encoded: Any) -> AlignedMentions:
    return align_mentions(question, encoded, linker.config.max_mention_width)


def _of_mentions(
    questions: Sequence[Question], aligned: Sequence[AlignedMentions], rows: np.ndarray
) -> list[tuple[np.ndarray, ...]]:
    """Returns the candidates of each question's gold mentions; none if no tokens express it.

    Args:
      questions: Q questions.
      aligned: their mentions as tokens.
      rows: [n, C] int32, candidates of all spans of `aligned`.
    """
    remaining = iter(rows)
    lists = []
    for question, mentions in zip(questions, aligned, strict=True):
        left_out = {problem.mention for problem in mentions.problems if problem.is_left_out}
        lists.append(
            tuple(
                rows[:0, 0] if number in left_out else next(remaining)
                for number in range(len(question.mentions))
            )
        )
    return lists
