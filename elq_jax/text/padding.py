"""Pads token ids to arrays of few distinct shapes, each of which costs a compilation."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from elq_jax.core.errors import ElqError, check_count

LENGTH_BUCKETS = (12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)

BATCH_BUCKETS = (1, 4, 16, 32, 64)

_BATCH_COST = 30
"""Tokens whose encoding takes as long as what each batch costs besides: 20 to 70 on CPUs with
bfloat16, from the times of MiniLM with 4 to 64 questions of 12 to 24 tokens."""


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
    longest: int = LENGTH_BUCKETS[-1],
) -> list[EvaluationBatch]:
    """Groups questions of similar length into batches, shortest first.

    Every question is in exactly one batch, and the longest of a batch has at most twice the tokens
    of the shortest, beyond 16. Time is saved where there are many questions, and compilations where
    there are few: full batches of at least 32 are padded to a multiple of 2 tokens (4 from 32 on, 8
    from 64 on, and so forth), all others to `LENGTH_BUCKETS` and to `BATCH_BUCKETS`.

    Args:
      lengths: number of tokens of each question.
      batch_size: B of full batches.
      longest: largest T.

    Raises:
      ElqError: a question is longer than `longest`, or `batch_size` is below 1.
    """
    check_count("batch_size", batch_size)
    order = np.argsort(np.asarray(lengths, np.int64), kind="stable")
    ordered = np.asarray(lengths, np.int64)[order]
    buckets = [*(size for size in LENGTH_BUCKETS if size < longest), longest]
    classes = np.searchsorted([16 << i for i in range(16)], ordered)
    batches = []
    for members in np.split(order, np.flatnonzero(np.diff(classes)) + 1) if len(order) else ():
        start = 0
        while start < len(members):
            size = _next_size(len(members) - start, batch_size)
            indices = members[start : start + size]
            most = int(lengths[indices[-1]])
            length = bucket(most, buckets)
            if len(indices) == batch_size >= 32:
                step = max(2, 1 << most.bit_length() >> 4)
                length = min(-(-most // step) * step, longest)
            batches.append(EvaluationBatch(indices, size, length))
            start += size
    return batches


def cheapest_batches(
    lengths: Sequence[int], shapes: Sequence[tuple[int, int]]
) -> list[EvaluationBatch]:
    """Groups questions of similar length into batches of given shapes, at the lowest cost.

    The cost of a batch is its B T tokens, padding included, and `_BATCH_COST` more.

    Args:
      lengths: number of tokens of each question.
      shapes: pairs of B and T, for which programs are compiled.

    Returns:
      batches, shortest first; every question is in exactly one.

    Raises:
      ElqError: a question is longer than the longest T.
    """

    @functools.cache
    def fitting(length: int) -> list[tuple[int, int]]:
        """Returns the shapes for questions of at most this length."""
        fits = [(size, most) for size, most in sorted(shapes, reverse=True) if most >= length]
        if not fits:
            most = max(most for _, most in shapes)
            raise ElqError(f"found a question of {length} tokens, expected at most {most}")
        return [*dict(fits).items()]  # Of each size, the shortest, which stands last.

    order = np.argsort(np.asarray(lengths, np.int64), kind="stable")
    costs: list[int] = [0]  # of the first n questions in this order
    last: list[tuple[int, int]] = []  # batch that they end with
    for count, index in enumerate(order.tolist(), 1):
        cost, shape = min(
            (costs[max(0, count - size)] + size * length + _BATCH_COST, (size, length))
            for size, length in fitting(lengths[index])
        )
        costs.append(cost)
        last.append(shape)
    batches, end = [], len(order)
    while end:
        size, length = last[end - 1]
        start = max(0, end - size)
        batches.append(EvaluationBatch(order[start:end], size, length))
        end = start
    return batches[::-1]


def few_shapes(longest: int, batch_size: int = 64) -> list[tuple[int, int]]:
    """Lists shapes for `cheapest_batches` where compiling would take longer than padding adds.

    Args:
      longest: largest T.
      batch_size: B of all batches.
    """
    lengths = *(length for length in LENGTH_BUCKETS if length < longest), longest
    return [(batch_size, length) for length in lengths]


def _next_size(count: int, batch_size: int) -> int:
    """Returns the size of the next batch for `count` questions; those not full come first.

    A batch that is a quarter padding takes as long as two without; one of 16, if half is padding.
    """
    rest = count % batch_size
    if not rest:
        return batch_size
    sizes = [*(size for size in BATCH_BUCKETS if size < batch_size), batch_size]
    larger = bucket(rest, sizes)
    if larger <= 4 or rest >= (0.75 if larger > 16 else 0.55) * larger:
        return larger
    return max(size for size in sizes if size <= rest)
