"""Predictions as lines of JSON, in the one form of questions: written, and read to be compared."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from elq_jax.core.errors import ElqError
from elq_jax.evaluation.matching import Gold, Predicted, QuestionResult
from elq_jax.questions.read import read_questions
from elq_jax.questions.records import LinkRow, Mention
from elq_jax.storage.files import atomic_write

if TYPE_CHECKING:
    from elq_jax.entities.catalogue import Catalogue

PREDICTIONS = "predictions.jsonl"


class LinkRecords:
    """Makes links in the form that `elq_jax.link` writes of gold mentions and predictions.

    Args:
      rows: rows whose names are looked up, in one pass over the catalogue.
      catalogue: catalogue that has their titles and Wikidata ids; None: the titles in the gold are
        all that is known.
    """

    def __init__(self, rows: Iterable[int], catalogue: Catalogue | None):
        self._names: dict[int, tuple[str | None, str | None, str | None]] = {}
        rows = sorted({row for row in rows if row >= 0})
        if catalogue is not None and rows:
            columns = catalogue.titles(rows), catalogue.wikidata_ids(rows), catalogue.ids(rows)
            self._names = dict(zip(rows, zip(*columns, strict=True), strict=True))

    def __call__(self, link: Gold | Predicted, text: str) -> dict[str, Any]:
        """Returns a link as JSON values; predictions have their score, and probability if any.

        The row of a prediction of something outside the catalogue is None, that of gold -1.
        """
        unknown = getattr(link, "title", None), None, None
        title, wikidata_id, own = self._names.get(link.row, unknown)
        is_gold = isinstance(link, Gold)
        row = link.row if is_gold or link.row >= 0 else None
        mention = text[link.start : link.end]
        record = msgspec.to_builtins(
            LinkRow(link.start, link.end, mention, title, wikidata_id, row, own)
        )
        if not is_gold:
            record["score"] = round(link.score, 6)
            if link.probability is not None:
                record["probability"] = round(link.probability, 6)
        return record


def write_predictions(
    path: str | os.PathLike[str],
    results: Sequence[QuestionResult],
    threshold: float,
    catalogue: Catalogue | None = None,
) -> None:
    """Writes the predictions with score > threshold, a line for each question.

    The file can be read as labelled questions, and `evaluate --against` compares with it.
    """
    predicted = [[p for p in result.predicted if p.score > threshold] for result in results]
    record_of = LinkRecords((link.row for links in predicted for link in links), catalogue)
    with atomic_write(path, "w") as file:
        for result, links in zip(results, predicted, strict=True):
            links = sorted(links, key=lambda link: link.start)
            record = {"id": result.id, "text": result.text}
            record["links"] = [record_of(link, result.text) for link in links]
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def read_predictions(
    path: str | os.PathLike[str], catalogue: Catalogue, labelled: Sequence[Any]
) -> list[tuple[Predicted, ...]]:
    """Reads the predictions of an earlier run on the same questions.

    Args:
      path: folder that `evaluate --output` wrote, its predictions.jsonl, or what `link` wrote.
      catalogue: catalogue in which their entities are looked up.
      labelled: objects with the id and the text of the questions, in their order.

    Returns:
      predictions of each question, with score 0. Entities that are not in this catalogue have the
      row len(catalogue), which is right nowhere.

    Raises:
      ElqError: there is no such file, or its questions are others.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        path = path / PREDICTIONS
        if not path.is_file():
            raise ElqError(
                f"{path}: no such file; expected the predictions that evaluate writes to its "
                "--output. Evaluate that run again, or give what link wrote for the same questions"
            )
    questions, _ = read_questions(path, catalogue, allow_overlaps=True)
    if len(questions) != len(labelled):
        raise ElqError(
            f"{path}: found {len(questions):,} questions, expected the same {len(labelled):,} that "
            "are evaluated now, in their order"
        )
    for line, (other, question) in enumerate(zip(questions, labelled, strict=True), 1):
        found, expected = (other.id, other.text), (question.id, question.text)
        if found != expected:
            raise ElqError(
                f"{path}: question {line} is {found[0]} {found[1]!r}, expected {expected[0]} "
                f"{expected[1]!r}, as in --questions; two runs are compared on the same questions "
                "in the same order"
            )

    def predicted(mention: Mention) -> Predicted:
        row = mention.row
        if row < 0 and (mention.title or mention.wikidata_id):
            row = len(catalogue)
        return Predicted(mention.start, mention.end, row, 0.0)

    return [tuple(map(predicted, question.mentions)) for question in questions]
