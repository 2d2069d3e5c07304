"""Chooses links as the original does: in token positions, by one of three kinds of thresholds.

The decoder is registered as "elq_jax.original.decoding:original".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, Literal, get_args

import numpy as np

from elq_jax.core.errors import ElqError
from elq_jax.linking.decoding import (
    DECODERS,
    FIRST,
    INSIDE,
    LAST,
    MEANINGFUL,
    Decoded,
    Decoder,
    accept,
    best_first,
    character_spans,
    joined,
    joint_scores,
    take,
)
from elq_jax.linking.links import ScoredSpans
from elq_jax.text.tokenization import EncodedQuestion

ThresholdType = Literal["joint", "top_entity_by_mention", "thresholded_entity_by_mention"]
THRESHOLD_TYPES: tuple[str, ...] = get_args(ThresholdType)


@DECODERS.register("original")
@dataclasses.dataclass(frozen=True)
class Original(Decoder):
    """Decodes as `main_dense.py` of the original does (ELQ_BEHAVIOUR, sections 5 and 7).

    Mentions are accepted from the highest score down, and a mention that shares a token with an
    accepted one is dropped. Of equal scores, the span that comes first wins. All comparisons are
    strict.

    Attributes:
      threshold_type: kind of comparison that a link must pass.
        "joint": the joint score of the top candidate > threshold.
        "top_entity_by_mention": the span logit (not its log sigmoid) > mention_threshold; the score
          is the inner product of the top candidate; overlapping mentions stay.
        "thresholded_entity_by_mention": the inner product of the top candidate > threshold, and the
          span logit > mention_threshold; the score is the inner product.
      mention_threshold: threshold of span logits; None: the same as `threshold`, which is not
        allowed for "top_entity_by_mention".
      allow_special_tokens: permission for mentions that contain [CLS] or [SEP].
      special_tokens_in_text: choice to read a literal "[SEP]" in a question as that token.
      allow_overlaps: choice to keep overlapping mentions, as the original's evaluation during
        training does.
    """

    threshold_type: ThresholdType = "joint"
    mention_threshold: float | None = None
    allow_special_tokens: bool = True
    special_tokens_in_text: bool = True
    allow_overlaps: bool = False

    def __post_init__(self):
        if self.threshold_type == "top_entity_by_mention" and self.mention_threshold is None:
            raise ElqError(
                "mention_threshold: missing; threshold_type top_entity_by_mention compares span "
                "logits with it; give a number (the original's scripts use -0.6931)"
            )

    reads_windows: ClassVar[bool] = False

    @property
    def log_probabilities(self) -> bool:
        """Returns whether the threshold is compared with joint scores."""
        return self.threshold_type == "joint"

    @property
    def threshold_filters(self) -> bool:
        """Returns whether a higher threshold only leaves links out.

        In the other types, it also decides about the logits of spans, or about nothing.
        """
        return self.threshold_type == "joint"

    @property
    def keep_any(self) -> bool:
        """Returns whether the best spans are searched for even if none passes the threshold.

        With joint scores such spans would not pass later either.
        """
        return self.threshold_type != "joint"

    def prune_threshold(self, threshold: float) -> float:
        """Returns the threshold with which the original prunes spans by their logits."""
        if self.threshold_type == "top_entity_by_mention":
            return self.mention_threshold
        return threshold

    def roles(self, encoded: Sequence[EncodedQuestion], unknown_id: int) -> np.ndarray:
        """Allows every token anywhere in a mention; [CLS] and [SEP] only if so set."""
        ids, starts = joined([question.ids for question in encoded])
        roles = np.full(len(ids), INSIDE | FIRST | LAST | MEANINGFUL, np.uint8)
        if not self.allow_special_tokens:
            roles[starts[:-1]] = roles[starts[1:] - 1] = 0
        return roles

    def __call__(self, spans: ScoredSpans, threshold: float) -> Decoded:
        """Chooses links as the class describes; drops mentions whose top score is NaN."""
        joint, mention_scores = joint_scores(spans)
        if self.threshold_type == "joint":
            scores = joint[:, 0]
            passes = scores > threshold
        else:
            scores = np.where(spans.rows < 0, -np.inf, spans.scores)[:, 0].astype(np.float64)
            floor = threshold if self.mention_threshold is None else self.mention_threshold
            passes = spans.logits.astype(np.float64) > floor
            if self.threshold_type == "thresholded_entity_by_mention":
                passes &= scores > threshold
        order = best_first(spans, scores, passes & ~np.isnan(joint[:, 0]))
        if not self.allow_overlaps and self.threshold_type != "top_entity_by_mention":
            order = order[accept(spans.question[order], spans.bounds[order] + [0, 1])]
        return take(spans, order, character_spans(spans, order), scores, mention_scores, joint)


def triples(decoded: Decoded, number: int) -> list[tuple[str, int, int]]:
    """Returns the links of one question as the original prints them: (row as text, start, end).

    Positions count tokens after [CLS], and ends are exclusive; a mention that contains [CLS] starts
    at -1.

    Args:
      decoded: links of several questions.
      number: number of the question.
    """
    links = decoded.of(number)
    rows, bounds = decoded.rows[links, 0].tolist(), decoded.bounds[links].tolist()
    return [(str(row), start - 1, end) for row, (start, end) in zip(rows, bounds, strict=True)]


def printed_text(tokens: Sequence[str]) -> str:
    """Joins WordPiece tokens by the rules of transformers 3.1, which the original prints with.

    For comparing with its output only: the text that was encoded may have been another one.

        printed_text(["who", "##se", "dog", "?"])  # "whose dog?"
    """
    text = " ".join(tokens).replace(" ##", "").strip()
    for mark in (" .", " ?", " !", " ,"):
        text = text.replace(mark, mark[1:])
    text = text.replace(" ' ", "'")
    for ending in (" n't", " 'm", " 's", " 've", " 're"):
        text = text.replace(ending, ending[1:])
    return text
