"""Reads labelled questions in the form of the original's data sets (EL4QA).

In addition to the fields of a plain row, a row has `tokenized_text_ids`, the WordPiece ids of the
text without [CLS] and [SEP], and `tokenized_mention_idxs`, half-open positions of its mentions in
that list. The original works with these two; the character offsets in its files are often wrong.
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

    The token positions decide. Character offsets that are impossible are treated as unknown, not as
    an error.

    Raises:
      ElqError: a field is missing or has a value that this form does not allow.
    """
    ids = row["tokenized_text_ids"]
    if not isinstance(ids, list) or not ids or not all(is_natural(token_id) for token_id in ids):
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
