"""Runs a linker over labelled questions and keeps what it predicted."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from elq_jax.evaluation.sweep import Evaluation, Gold, Predicted, QuestionResult
from elq_jax.linking.linker import EntityLinker
from elq_jax.linking.scoring import BATCHES_IN_FLIGHT
from elq_jax.questions.align import AlignedMentions, align_mentions
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
    """Links labelled questions at a low threshold.

    Args:
      linker: what is measured.
      questions: with character offsets of their gold mentions.
      threshold: scores can later be asked for from here up.
      batch_size: questions encoded at a time.
      at_gold_spans: also retrieve candidates for the gold spans (disambiguation).
      progress: called with the number of questions just done.

    Returns:
      the predictions beside the gold, ready to be counted.
    """
    results: list[QuestionResult] = []
    step = BATCHES_IN_FLIGHT * batch_size
    for start in range(0, len(questions), step):
        part = questions[start : start + step]
        texts = [question.text for question in part]
        scored = linker.score_batch(texts, threshold, batch_size)
        links = linker.decode(scored, threshold)
        candidates = _at_gold_spans(linker, part, batch_size) if at_gold_spans else None
        for i, question in enumerate(part):
            gold = tuple(Gold(m.start, m.end, m.row, m.title) for m in question.mentions)
            predicted = tuple(
                Predicted(
                    link.start,
                    link.end,
                    link.row,
                    link.score,
                    tuple(candidate.row for candidate in link.candidates),
                )
                for link in links[i]
            )
            at_gold = candidates[i] if candidates is not None else None
            results.append(QuestionResult(question.id, question.text, gold, predicted, at_gold))
        if progress:
            progress(len(part))
    return Evaluation(results, decoded_at=threshold)


def align_gold(linker: EntityLinker, questions: Sequence[Question]) -> list[AlignedMentions]:
    """The tokens of every gold mention, and the mentions that cannot be found as they are."""
    encoded = linker.encode([question.text for question in questions])
    width = linker.config.max_mention_width
    return [align_mentions(q, e, width) for q, e in zip(questions, encoded, strict=True)]


def _at_gold_spans(
    linker: EntityLinker, questions: Sequence[Question], batch_size: int
) -> list[tuple[Sequence[int], ...]]:
    """Candidate rows of every gold mention; none for one that no tokens express."""
    texts = [question.text for question in questions]
    aligned = align_gold(linker, questions)
    found = linker.candidates_at(texts, [one.bounds for one in aligned], batch_size)
    lists = []
    for question, one, rows in zip(questions, aligned, found, strict=True):
        refused = {problem.mention for problem in one.problems if problem.is_left_out}
        remaining = iter(rows)
        empty = np.zeros(0, np.int32)
        lists.append(
            tuple(
                empty if number in refused else next(remaining)
                for number in range(len(question.mentions))
            )
        )
    return lists
