"""Lists the errors of a linker: missed, spurious, wrong entity, wrong bounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from elq_jax.evaluation.matching import Gold, Predicted, QuestionResult

Titles = Callable[[Sequence[int]], Sequence[str]]

ERRORS = ("missed", "spurious", "wrong_entity", "wrong_bounds")


def list_errors(
    results: Sequence[QuestionResult], threshold: float, titles: Titles | None = None
) -> list[dict[str, Any]]:
    """Lists the errors of a linker at a threshold, one JSON-able record per error.

    Exact links are set aside. Of the rest, a prediction that overlaps a gold mention is paired with
    it (same entity first, then the highest score): `wrong_bounds` when the entity is right, else
    `wrong_entity`. A gold mention left over is `missed`, a prediction left over is `spurious`.

    Args:
      results: questions with gold and predictions.
      threshold: score that a prediction must exceed to count.
      titles: function from catalogue rows to titles, such as `Catalogue.titles`.

    Returns:
      Records with id, text, error, gold and predicted (each start, end, mention, row, title;
      predicted also score; None where there is none) and gold_rank, the 0-based place of the
      gold entity among the candidates of the prediction (None: absent or not known).
    """
    found = [(result, *error) for result in results for error in _of_question(result, threshold)]
    rows = sorted({link.row for _, _, *pair in found for link in pair if link and link.row >= 0})
    names = dict(zip(rows, titles(rows), strict=True)) if titles and rows else {}

    def show(link: Gold | Predicted | None, text: str) -> dict[str, Any] | None:
        if link is None:
            return None
        record = {
            "start": link.start,
            "end": link.end,
            "mention": text[link.start : link.end],
            "row": link.row if link.row >= 0 else None,
            "title": names.get(link.row, getattr(link, "title", None)),
        }
        return record if isinstance(link, Gold) else record | {"score": link.score}

    records = []
    for result, kind, gold, predicted in found:
        ranked = gold and predicted and gold.row >= 0 and gold.row in predicted.candidates
        records.append(
            {
                "id": result.id,
                "text": result.text,
                "error": kind,
                "gold": show(gold, result.text),
                "predicted": show(predicted, result.text),
                "gold_rank": predicted.candidates.index(gold.row) if ranked else None,
            }
        )
    return records


def _of_question(
    result: QuestionResult, threshold: float
) -> Iterator[tuple[str, Gold | None, Predicted | None]]:
    """Yields the errors of one question as (kind, gold, predicted), in the order of the text."""
    kept = sorted(
        (link for link in result.predicted if link.score > threshold), key=lambda link: -link.score
    )
    exact = {(g.row, g.start, g.end) for g in result.gold if g.row >= 0}
    exact &= {(p.row, p.start, p.end) for p in kept}
    gold = [g for g in result.gold if (g.row, g.start, g.end) not in exact]
    kept = [p for p in kept if (p.row, p.start, p.end) not in exact]
    found: list[tuple[str, Gold | None, Predicted | None]] = []
    for kind in ("wrong_bounds", "wrong_entity"):
        for p in list(kept):
            for g in gold:
                overlap = max(g.start, p.start) < min(g.end, p.end)
                if overlap and (kind == "wrong_entity" or g.row == p.row):
                    found.append((kind, g, p))
                    gold.remove(g)
                    kept.remove(p)
                    break
    found += [("missed", g, None) for g in gold] + [("spurious", None, p) for p in kept]
    return iter(sorted(found, key=lambda error: (error[1] or error[2]).start))
