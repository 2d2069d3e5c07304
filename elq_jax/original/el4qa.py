"""Labelled questions in the form that the original's data sets (EL4QA) were published in.

Besides what a plain row has, a row has `tokenized_text_ids`, the WordPiece ids of the text without
[CLS] and [SEP], and `tokenized_mention_idxs`, half-open positions of its mentions among them. These
are what the original works with; its character offsets are often wrong.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any

from elq_jax.core.errors import ElqError
from elq_jax.questions.read import (
    RECORD_FORMS,
    check_length,
    is_natural,
    parse_gold,
    parse_spans,
    unexpected,
)
from elq_jax.questions.records import UNKNOWN_OFFSET, Question


@RECORD_FORMS.register("el4qa")
def parse(
    row: dict[str, Any], question: Question, require_mentions: bool, allow_overlaps: bool
) -> tuple[Question, list[int | None]]:
    """Reads the tokens and the gold of a row; see `elq_jax.questions.read.RecordForm`.

    The token positions are what counts: character offsets that cannot be are unknown, not an error.

    Raises:
      ElqError: a field is missing, or is not what this form has there.
    """
    ids = row["tokenized_text_ids"]
    if not isinstance(ids, list) or not ids or not all(is_natural(i) for i in ids):
        raise unexpected(row, "tokenized_text_ids", "a list of token ids that is not empty")
    question = replace(question, token_ids=tuple(ids), token_mentions=())
    if row.get("tokenized_mention_idxs") is None and not require_mentions:
        return question, []
    token_spans = parse_spans(row, "tokenized_mention_idxs", len(ids), "tokens", allow_overlaps)
    spans = [(UNKNOWN_OFFSET, UNKNOWN_OFFSET)] * len(token_spans)
    if row.get("mentions") is not None:
        check_length(row, "mentions", len(token_spans), "tokenized_mention_idxs")
        with contextlib.suppress(ElqError):
            spans = parse_spans(row, "mentions", len(question.text), "characters", allow_overlaps)
    mentions, label_ids = parse_gold(row, spans, "tokenized_mention_idxs")
    return replace(question, mentions=mentions, token_mentions=tuple(token_spans)), label_ids
