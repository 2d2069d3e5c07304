"""Reads benchmark files of ELEVANT as labelled questions.

A line is a document,

    {"id": 7, "text": "Ada wrote it in 1843.", "evaluation_span": [0, 21], "labels": [
     {"id": 0, "span": [0, 3], "entity_id": "Q7259", "name": "Ada Lovelace", "type": "Q215627"},
     {"id": 1, "span": [16, 20], "entity_id": "DATETIME", "name": "Unknown", "type": "DATETIME"}]}

and a label is a gold mention, unless it is one of these, which become neutral spans:

1. optional: its "optional" or "desc" is true, or it is of a quantity or date;
2. coreference: its "coref" is true, as of a pronoun;
3. nested: a label that encloses it by "parent" is a gold mention.

Labels that are not wholly in the evaluation span are left out. An "entity_id" that is no Wikidata
id, such as "<NIL>", is of something that is not in the catalogue.

Source: github.com/ad-freiburg/elevant, docs/benchmark_format.md and evaluation/groundtruth_label.py
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec

from elq_jax.core.errors import ElqError
from elq_jax.core.typed import convert
from elq_jax.questions.read import RECORD_FORMS, evaluation_span
from elq_jax.questions.records import OUT_OF_CATALOGUE, Mention, Question, Span, check_spans

_WIKIDATA_ID = re.compile(r"Q[0-9]+")


class _Label(msgspec.Struct, frozen=True):
    """Describes a label of ELEVANT; other fields are ignored."""

    span: Span
    entity_id: str
    id: int | str | None = None
    name: str | None = None
    type: str = ""
    parent: int | str | None = None
    optional: bool = False
    desc: bool = False
    coref: bool | None = None

    def reason(self) -> str | None:
        """Returns why the label is no gold mention, whatever the others are."""
        if self.coref:
            return "coreference"
        is_value = {"QUANTITY", "DATETIME"}.intersection([*self.type.split("|"), self.entity_id])
        return "optional" if self.optional or self.desc or is_value else None


class _Labels(msgspec.Struct, frozen=True):
    labels: list[_Label]


@RECORD_FORMS.register("elevant")
def parse(
    row: dict[str, Any], question: Question, require_mentions: bool, allow_overlaps: bool
) -> tuple[Question, list[int | None]]:
    """Reads the labels of a row; see `elq_jax.questions.read.RecordForm`.

    Raises:
      ElqError: a field is missing, a span is not in the text, or two gold mentions overlap.
    """
    del require_mentions
    labels = convert(row, _Labels).labels
    spans = [label.span for label in labels]
    check_spans(spans, "labels", len(question.text), "characters", allow_overlaps=True)
    start, end = evaluation_span(row, len(question.text))
    by_id = {label.id: label for label in labels if label.id is not None}
    gold, neutral, left_out = [], [], []
    for label in labels:
        is_inside = start <= label.span[0] and label.span[1] <= end
        reason = _reason(label, by_id) if is_inside else "outside the evaluation span"
        if reason is None:
            gold.append(label)
            continue
        left_out.append(reason)
        if is_inside:
            neutral.append(label.span)
    spans = [label.span for label in gold]
    check_spans(spans, "labels that are gold", len(question.text), "characters", allow_overlaps)
    mentions = []
    rows: list[int | None] = []
    for label in gold:
        has_id = bool(_WIKIDATA_ID.fullmatch(label.entity_id))
        mentions.append(
            Mention(
                *label.span,
                title=label.name or None,
                wikidata_id=label.entity_id if has_id else None,
            )
        )
        rows.append(None if has_id else OUT_OF_CATALOGUE)
    question = replace(
        question, mentions=tuple(mentions), neutral=tuple(neutral), left_out=tuple(left_out)
    )
    return question, rows


def _reason(label: _Label, by_id: Mapping[Any, _Label]) -> str | None:
    """Returns why a label is no gold mention; None if it is one."""
    reason = label.reason()
    if reason is not None:
        return reason
    enclosing, passed = label.parent, {label.id}
    while enclosing is not None:
        parent = by_id.get(enclosing)
        if parent is None or enclosing in passed:
            raise ElqError(
                f"label {label.id}: its parent {enclosing} is not there, or is nested in it"
            )
        if parent.reason() is None:
            return "nested"
        passed.add(enclosing)
        enclosing = parent.parent
    return None
