"""Lists the errors of a linker: missed, spurious, wrong entity, wrong bounds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from elq_jax.evaluation.matching import Gold, Predicted, QuestionResult
from elq_jax.evaluation.predictions import LinkRecords

if TYPE_CHECKING:
    from elq_jax.entities.catalogue import Catalogue

ERRORS = ("missed", "spurious", "wrong_entity", "wrong_bounds")


def list_errors(
    results: Sequence[QuestionResult], threshold: float, catalogue: Catalogue | None = None
) -> list[dict[str, Any]]:
    """Lists the errors of a linker at a threshold, one JSON-able record per error.

    Exact links are set aside. Of the rest, a prediction that overlaps a gold mention is paired with
    it (same entity first, then the highest score): `wrong_bounds` when the entity is right, else
    `wrong_entity`. A gold mention left over is `missed`, a prediction left over is `spurious`.

    Args:
      results: questions with gold and predictions.
      threshold: score that a prediction must exceed to count.
      catalogue: catalogue that has the titles and Wikidata ids of rows; None: the titles in the
        gold are all that is known.

    Returns:
      Records with id, text, error, gold, predicted and gold_rank. `gold` and `predicted` are links
      in the form that `elq_jax.link` writes (`questions.records.LinkRow`; predicted has its score
      besides), or None where there is none. `gold_rank` is the 0-based place of the gold entity
      among the candidates of the prediction (None: absent or not known).
    """
    errors = [(result, *error) for result in results for error in _of_question(result, threshold)]
    links = [link for _, _, *pair in errors for link in pair if link]
    record_of = LinkRecords((link.row for link in links), catalogue)
    records = []
    for result, kind, gold, predicted in errors:
        is_ranked = gold and predicted and gold.row >= 0 and gold.row in predicted.candidates
        records.append(
            {
                "id": result.id,
                "text": result.text,
                "error": kind,
                "gold": record_of(gold, result.text) if gold else None,
                "predicted": record_of(predicted, result.text) if predicted else None,
                "gold_rank": predicted.candidates.index(gold.row) if is_ranked else None,
            }
        )
    return records


def _of_question(
    result: QuestionResult, threshold: float
) -> Iterator[tuple[str, Gold | None, Predicted | None]]:
    """Yields the errors of one question as (kind, gold, predicted), in the order of the text."""
    predictions = sorted(result.counted(threshold), key=lambda link: -link.score)
    exact = {(g.row, g.start, g.end) for g in result.gold}
    exact &= {(p.row, p.start, p.end) for p in predictions}
    gold = [g for g in result.gold if (g.row, g.start, g.end) not in exact]
    predictions = [p for p in predictions if (p.row, p.start, p.end) not in exact]
    errors: list[tuple[str, Gold | None, Predicted | None]] = []
    for kind in ("wrong_bounds", "wrong_entity"):
        for p in list(predictions):
            for g in gold:
                overlap = max(g.start, p.start) < min(g.end, p.end)
                if overlap and (kind == "wrong_entity" or g.row == p.row):
                    errors.append((kind, g, p))
                    gold.remove(g)
                    predictions.remove(p)
                    break
    errors += [("missed", g, None) for g in gold]
    errors += [("spurious", None, p) for p in predictions]
    return iter(sorted(errors, key=lambda error: (error[1] or error[2]).start))
