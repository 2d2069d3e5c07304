"""From mention logits and retrieved candidates to scored, non-overlapping mentions, in NumPy.

Everything here works on inclusive token positions ([CLS] is token 0) except `character_span`, the
bridge to the half-open character offsets of the public API.
"""

from __future__ import annotations

import dataclasses
import unicodedata
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from elq_jax.core.errors import ElqError

ThresholdType = Literal["joint", "top_entity_by_mention", "thresholded_entity_by_mention"]
THRESHOLD_TYPES: tuple[str, ...] = get_args(ThresholdType)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Decoded:
    """One linked mention of one question.

    Attributes:
      start: first token.
      end: last token (inclusive).
      score: what the mention was ranked by: the joint score of the top candidate, or its inner
        product for the two other threshold types.
      mention_score: log sigmoid of the mention logit.
      rows: [C] int, candidate rows, best first; -1 where the index found fewer than C.
      scores: [C] float64, joint scores of the candidates (log-probabilities); -inf where row is -1.
    """

    start: int
    end: int
    score: float
    mention_score: float
    rows: np.ndarray
    scores: np.ndarray


def log_sigmoid(x: np.ndarray) -> np.ndarray:
    """Logarithm of the logistic function, without overflow; keeps shape and dtype."""
    return -np.logaddexp(0, -x)


def log_softmax(x: np.ndarray) -> np.ndarray:
    """Log-softmax over the last axis; a row without a finite entry, or with a NaN, becomes NaN."""
    with np.errstate(invalid="ignore"):
        shifted = x - x.max(axis=-1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def decode_batch(
    mention_logits: ArrayLike,
    bounds: ArrayLike,
    keep_mask: ArrayLike,
    candidate_scores: ArrayLike,
    candidate_rows: ArrayLike,
    threshold: float,
    threshold_type: ThresholdType = "joint",
    mention_threshold: float | None = None,
    *,
    lengths: ArrayLike | None = None,
    allow_special_tokens: bool = False,
    allow_overlaps: bool = False,
) -> list[list[Decoded]]:
    """Scores, thresholds and disentangles the mentions of a batch of questions.

    The joint score of a mention and a candidate is log softmax over the mention's C retrieved
    candidates plus log sigmoid of the mention logit (the softmax runs over the retrieved
    candidates, not over the catalogue, as in the original code). Mentions are then accepted from
    the highest score down; one that shares a token with an accepted one is dropped. Equal scores:
    the mention that comes first in the arrays wins. All comparisons are strict, in float64.

    Threshold types, as in the original:
      joint: joint score of the top candidate > threshold.
      top_entity_by_mention: mention logit (not its log sigmoid) > mention_threshold; the score is
        the inner product of the top candidate; overlapping mentions stay.
      thresholded_entity_by_mention: inner product of the top candidate > threshold and mention
        logit > mention_threshold (default: threshold); the score is the inner product.

    Args:
      mention_logits: [B, K] float.
      bounds: [B, K, 2] int, first and last token (inclusive).
      keep_mask: [B, K] bool, mentions that survived pruning.
      candidate_scores: [B, K, C] float inner products, descending; ignored where keep_mask is
        False.
      candidate_rows: [B, K, C] int catalogue rows; -1 = no such candidate.
      threshold: see above; -inf keeps everything.
      threshold_type: see above.
      mention_threshold: see above.
      lengths: [B] int, tokens of each question with [CLS] and [SEP]; needed to drop special tokens.
      allow_special_tokens: keep mentions that contain [CLS] or [SEP], as the original does. By
        default they are dropped before overlaps are resolved, so they shadow no real mention.
      allow_overlaps: skip the overlap step (the original's evaluation during training does).

    Returns:
      For each question its mentions, best score first. Mentions whose top score is NaN are dropped.

    Raises:
      ElqError: unknown threshold type, a missing mention_threshold or lengths, or shapes that do
        not fit together.
    """
    if threshold_type not in THRESHOLD_TYPES:
        names = ", ".join(THRESHOLD_TYPES)
        raise ElqError(f"threshold_type: found {threshold_type!r}, expected one of {names}")
    if mention_threshold is None:
        if threshold_type == "top_entity_by_mention":
            raise ElqError(
                "mention_threshold: top_entity_by_mention compares mention logits with it; give a "
                "number (the original's scripts use -0.6931)"
            )
        mention_threshold = threshold
    mention_logits, bounds = np.asarray(mention_logits), np.asarray(bounds)
    candidate_scores, candidate_rows = np.asarray(candidate_scores), np.asarray(candidate_rows)
    keep_mask = np.asarray(keep_mask, bool)
    _check_shapes(mention_logits, bounds, keep_mask, candidate_scores, candidate_rows)

    if not allow_special_tokens:
        if lengths is None:
            raise ElqError(
                "lengths: needed to recognise [SEP]; give the number of tokens of each question, "
                "or allow_special_tokens=True"
            )
        last = np.asarray(lengths).reshape(-1, 1) - 1
        keep_mask = keep_mask & (bounds[..., 0] > 0) & (bounds[..., 1] < last)

    # From here on one row per kept mention of any question: [n] and [n, C].
    question, mention = np.nonzero(keep_mask)
    logits = mention_logits[question, mention].astype(np.float64)
    rows = candidate_rows[question, mention]
    products = np.where(rows < 0, -np.inf, candidate_scores[question, mention].astype(np.float64))
    mention_scores = log_sigmoid(logits)
    joint = log_softmax(products) + mention_scores[:, None]
    if threshold_type == "joint":
        scores = joint[:, 0]
        passes = scores > threshold
    else:
        scores = products[:, 0]
        passes = logits > mention_threshold
        if threshold_type == "thresholded_entity_by_mention":
            passes &= scores > threshold
    passes &= ~np.isnan(joint[:, 0])

    order = np.flatnonzero(passes)
    order = order[np.lexsort((-scores[order], question[order]))]  # stable
    overlaps_stay = allow_overlaps or threshold_type == "top_entity_by_mention"
    results: list[list[Decoded]] = [[] for _ in range(len(keep_mask))]
    taken = [0] * len(results)  # bit t of taken[q]: token t of question q belongs to a mention
    columns = (
        question[order].tolist(),
        bounds[question, mention][order].tolist(),
        scores[order].tolist(),
        mention_scores[order].tolist(),
        rows[order],
        joint[order],
    )
    for q, (start, end), *values in zip(*columns, strict=True):
        tokens = (2 << end) - (1 << start)
        if overlaps_stay or not taken[q] & tokens:
            taken[q] |= tokens
            results[q].append(Decoded(start, end, *values))
    return results


def decode(
    mention_logits: ArrayLike,
    bounds: ArrayLike,
    keep_mask: ArrayLike,
    candidate_scores: ArrayLike,
    candidate_rows: ArrayLike,
    threshold: float,
    threshold_type: ThresholdType = "joint",
    mention_threshold: float | None = None,
    *,
    length: int | None = None,
    allow_special_tokens: bool = False,
    allow_overlaps: bool = False,
) -> list[Decoded]:
    """`decode_batch` for one question: [K], [K, 2], [K], [K, C], [K, C] and its token count."""
    arrays = (mention_logits, bounds, keep_mask, candidate_scores, candidate_rows)
    return decode_batch(
        *(np.asarray(array)[None] for array in arrays),
        threshold,
        threshold_type,
        mention_threshold,
        lengths=None if length is None else [length],
        allow_special_tokens=allow_special_tokens,
        allow_overlaps=allow_overlaps,
    )[0]


def _check_shapes(logits, bounds, keep_mask, candidate_scores, candidate_rows) -> None:
    expected = {
        "mention_logits": (logits.shape, keep_mask.shape),
        "bounds": (bounds.shape, (*keep_mask.shape, 2)),
        "candidate_rows": (candidate_rows.shape, candidate_scores.shape),
        "candidate_scores": (candidate_scores.shape[:-1], keep_mask.shape),
    }
    for name, (found, wanted) in expected.items():
        if found != wanted:
            raise ElqError(f"{name}: found shape {found}, expected {wanted}, to fit keep_mask")
    if candidate_scores.shape[-1] < 1:
        raise ElqError("candidate_scores: found no candidates, expected at least one per mention")


def character_span(start: int, end: int, offsets: np.ndarray, text: str) -> tuple[int, int]:
    """Half-open character offsets of the tokens start..end (inclusive).

    Tokens without characters ([CLS] and [SEP] have offsets (0, 0)) add nothing, so a span of only
    such tokens gives (0, 0). Combining marks that the tokenizer stripped after the last token are
    included ("café" written with U+0301 keeps its accent), white space at either end never is.

    Args:
      start: first token.
      end: last token (inclusive).
      offsets: [T, 2] int, half-open character offsets of each token in `text`.
      text: the question.
    """
    inside = offsets[start : end + 1]
    inside = inside[inside[:, 0] < inside[:, 1]]
    if not len(inside):
        return 0, 0
    first, last = int(inside[:, 0].min()), int(inside[:, 1].max())
    later = offsets[end + 1 :, 0]
    limit = int(later[later >= last].min(initial=len(text)))
    while last < limit and unicodedata.category(text[last]) == "Mn":
        last += 1
    while first < last and text[first].isspace():
        first += 1
    while first < last and text[last - 1].isspace():
        last -= 1
    return first, last
