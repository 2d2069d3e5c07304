"""Pads token ids to arrays of few distinct shapes, each of which costs a compilation."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from elq_jax.core.errors import ElqError, check_count

LENGTH_BUCKETS = (12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)

BATCH_BUCKETS = (1, 4, 16, 64)


def bucket(n: int, sizes: Sequence[int]) -> int:
    """Returns the smallest of the ascending `sizes` that is at least `n`; ElqError if none is."""
    for size in sizes:
        if size >= n:
            return size
    raise ElqError(f"found size {n}, expected at most {sizes[-1]}")


def pad_tokens(
    token_ids: Sequence[np.ndarray], length: int, batch: int, pad_id: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Pads rows of token ids to one array.

    Args:
      token_ids: at most `batch` arrays of at most `length` ids.
      length: T of the result.
      batch: B of the result; rows without a question have no real token.
      pad_id: id that fills the array.

    Returns:
      ids [B, T] int32 and mask [B, T] bool, True = a token of the question, whatever its id.

    Raises:
      ElqError: too many rows, or a row that is too long.
    """
    if len(token_ids) > batch:
        raise ElqError(
            f"token_ids: found {len(token_ids)} rows, expected at most {batch}, the batch size"
        )
    ids = np.full((batch, length), pad_id, np.int32)
    mask = np.zeros((batch, length), bool)
    for row, tokens in enumerate(token_ids):
        if len(tokens) > length:
            raise ElqError(
                f"token_ids: row {row} has {len(tokens)} tokens, expected at most {length}"
            )
        ids[row, : len(tokens)] = tokens
        mask[row, : len(tokens)] = True
    return ids, mask


@dataclass(frozen=True, slots=True)
class EvaluationBatch:
    """Questions to encode together.

    Attributes:
      indices: [n] int64, numbers of the questions; n <= size.
      size: B to pad to.
      length: T to pad to.
    """

    indices: np.ndarray
    size: int
    length: int


def length_sorted_batches(
    lengths: Sequence[int],
    batch_size: int,
    length_buckets: Sequence[int] = LENGTH_BUCKETS,
    batch_buckets: Sequence[int] = BATCH_BUCKETS,
) -> list[EvaluationBatch]:
    """Groups questions of one length bucket into batches, shortest first.

    Every question is in exactly one batch. Only the last batch of a length bucket can be partial;
    it is padded to a batch bucket.

    Args:
      lengths: number of tokens of each question.
      batch_size: B of full batches.
      length_buckets: values of T to choose from.
      batch_buckets: values of B for partial batches; those above `batch_size` are not used.

    Raises:
      ElqError: a question is longer than the largest bucket, or `batch_size` is below 1.
    """
    check_count("batch_size", batch_size)
    sizes = [*(size for size in batch_buckets if size < batch_size), batch_size]
    members = defaultdict(list)
    for index in np.argsort(np.asarray(lengths, np.int64), kind="stable").tolist():
        members[bucket(int(lengths[index]), length_buckets)].append(index)
    return [
        EvaluationBatch(np.array(chosen, np.int64), bucket(len(chosen), sizes), length)
        for length, indices in members.items()
        for start in range(0, len(indices), batch_size)
        if (chosen := indices[start : start + batch_size])
    ]
