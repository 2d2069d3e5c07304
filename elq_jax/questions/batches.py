"""Makes batches of training examples, in an order that the step number decides."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from elq_jax.core.errors import ElqError
from elq_jax.questions.examples import (
    Examples,
    TrainingExample,
    mention_counts,
    neutral_counts,
)
from elq_jax.text.padding import LENGTH_BUCKETS, bucket, pad_tokens


class TrainingBatches:
    """Makes batches by step number: `batches[step]` depends on data, settings and step alone.

    The step number is therefore the position of a run in its data, and a run that resumes takes the
    same steps as an unbroken one. Every epoch has its own order, decided by the seed and the epoch.

    A batch is a dict of the rows of this process:
      input_ids [B, T] int32, mask [B, T] bool: questions, padded;
      gold_bounds [B, M, 2] int32: first and last token of gold mentions (padding: [0, 1]);
      gold_rows [B, M] int32: their rows of the catalogue (-1: not in it, or padding);
      gold_mask [B, M] bool: True = a gold mention;
      example_mask [B] bool: False = no question (end of an epoch), and `mask` is False throughout;
      neutral_bounds [B, U, 2] int32, neutral_mask [B, U] bool, only if there are neutral spans:
        their first and last tokens (padding: [0, 1]), True = a neutral span;
      negative_rows [B, M, N] int32, only if the examples have mined negatives (padding: -1);
      mention_counts [batch_size] int32: gold mentions of each question of the global batch, the
        same in all processes (padding: 0).
    M is one number for all batches, and so is U. T is the length bucket of the longest question of
    the global batch, so all processes agree on it.

    Attributes:
      steps_per_epoch: number of batches of an epoch.
      examples_per_epoch: number of examples of an epoch, the repeated ones counted each time.
      max_mentions: M.
      max_neutral: U, 0 where no example has neutral spans.
    """

    def __init__(
        self,
        examples: Examples | Sequence[Examples],
        batch_size: int,
        seed: int = 0,
        *,
        shuffle: bool = True,
        repeats: Sequence[float] | None = None,
        drop_last: bool = False,
        process_index: int = 0,
        process_count: int = 1,
        length_buckets: Sequence[int] = LENGTH_BUCKETS,
        max_mentions: int | None = None,
        pad_id: int = 0,
    ):
        """Plans the order; of examples on disk, it reads only their counts.

        Args:
          examples: examples to learn from; with `repeats`, a sequence of sets of examples.
          batch_size: number of examples of a global batch (over all processes).
          seed: seed of the order; 0 <= seed < 2**32.
          shuffle: whether the order is random; otherwise every epoch has the order of `examples`.
          repeats: number of times that an epoch has the examples of each set. With 2.5 it has each
            example twice, and a different half of them once more. Sets are shuffled together.
          drop_last: whether the last examples of an epoch that do not fill a batch are left out;
            otherwise the batch is padded.
          process_index: number of this process.
          process_count: number of processes; each gets `batch_size / process_count` rows.
          length_buckets: values of T to choose from.
          max_mentions: M; None: the largest number of mentions of an example, rounded up to a
            power of two.
          pad_id: id that fills `input_ids`.

        Raises:
          ElqError: no examples, or arguments that do not fit together.
        """
        import grain

        sets = [examples] if repeats is None else list(examples)
        repeats = [1.0] if repeats is None else list(repeats)
        _check_training_arguments(sets, repeats, batch_size, seed, process_index, process_count)

        datasets = []
        *set_seeds, epoch_seed = map(
            int, np.random.SeedSequence(seed).generate_state(len(sets) + 1)
        )
        for example_set, repeat, set_seed in zip(sets, repeats, set_seeds, strict=True):
            dataset = grain.MapDataset.source(example_set)
            if shuffle:
                dataset = dataset.shuffle(seed=set_seed)
            # The next epoch begins with a new order of the set, since this one is cut here.
            size = max(1, round(repeat * len(example_set)))
            datasets.append(dataset.repeat(math.ceil(repeat))[:size])
        dataset = grain.MapDataset.concatenate(datasets)
        if shuffle:
            dataset = dataset.shuffle(seed=epoch_seed)

        self.examples_per_epoch = len(dataset)
        rounded = math.floor if drop_last else math.ceil
        self.steps_per_epoch = rounded(self.examples_per_epoch / batch_size)
        if not self.steps_per_epoch:
            raise ElqError(
                f"batch_size: {batch_size}, but an epoch has only {self.examples_per_epoch} "
                "examples; give a smaller batch_size, or drop_last=False"
            )
        if max_mentions is None:
            most = max(mention_counts(example_set).max() for example_set in sets)
            max_mentions = _power_of_two(most)
        self.max_mentions = max_mentions
        most = max(neutral_counts(example_set).max() for example_set in sets)
        self.max_neutral = _power_of_two(most) if most else 0
        self._rows = slice(
            process_index * batch_size // process_count,
            (process_index + 1) * batch_size // process_count,
        )
        self._batch_size = batch_size
        self._length_buckets = length_buckets
        self._pad_id = pad_id
        dataset = dataset.batch(batch_size, drop_remainder=drop_last, batch_fn=self._collate)
        self._dataset = dataset.repeat()

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        """Returns the batch of a step, counted from 0 over all epochs."""
        if step < 0:
            raise IndexError(f"step {step} is negative")
        return self._dataset[int(step)]

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return self.iterate()

    def iterate(self, start: int = 0, prefetch: int = 2) -> Iterator[dict[str, np.ndarray]]:
        """Yields the batches of steps `start`, `start + 1`, ... without end, made in a thread.

        Args:
          start: first step.
          prefetch: number of batches to make in advance.
        """
        import grain

        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=prefetch)
        iterator = iter(self._dataset.to_iter_dataset(options))
        iterator.set_state({"next_index": int(start)})
        return iterator

    def _collate(self, examples: Sequence[TrainingExample]) -> dict[str, np.ndarray]:
        """Makes this process's rows of a global batch from its examples."""
        length = bucket(max(len(example.ids) for example in examples), self._length_buckets)
        size = self._rows.stop - self._rows.start
        local_examples = examples[self._rows]
        token_ids = [example.ids for example in local_examples]
        input_ids, mask = pad_tokens(token_ids, length, size, self._pad_id)
        gold_bounds = _no_bounds(size, self.max_mentions)
        gold_rows = np.full((size, self.max_mentions), -1, np.int32)
        gold_mask = np.zeros((size, self.max_mentions), bool)
        mention_counts = np.zeros(self._batch_size, np.int32)
        mention_counts[: len(examples)] = [len(example.rows) for example in examples]
        batch = {}
        has_negatives = examples[0].negatives is not None
        if has_negatives:
            shape = (size, self.max_mentions, examples[0].negatives.shape[1])
            batch["negative_rows"] = np.full(shape, -1, np.int32)
        for row, example in enumerate(local_examples):
            mentions = len(example.rows)
            if mentions > self.max_mentions:
                raise ElqError(
                    f"max_mentions: {self.max_mentions}, but an example has {mentions} mentions; "
                    "give at least as many"
                )
            gold_bounds[row, :mentions] = example.bounds
            gold_rows[row, :mentions] = example.rows
            gold_mask[row, :mentions] = True
            if has_negatives:
                batch["negative_rows"][row, :mentions] = example.negatives
        if self.max_neutral:
            batch |= self._neutral(local_examples, size)
        return batch | {
            "input_ids": input_ids,
            "mask": mask,
            "gold_bounds": gold_bounds,
            "gold_rows": gold_rows,
            "gold_mask": gold_mask,
            "example_mask": np.arange(size) < len(local_examples),
            "mention_counts": mention_counts,
        }

    def _neutral(
        self, local_examples: Sequence[TrainingExample], size: int
    ) -> dict[str, np.ndarray]:
        """Makes the arrays of the neutral spans of this process's examples."""
        bounds = _no_bounds(size, self.max_neutral)
        mask = np.zeros((size, self.max_neutral), bool)
        for row, example in enumerate(local_examples):
            bounds[row, : len(example.neutral)] = example.neutral
            mask[row, : len(example.neutral)] = True
        return {"neutral_bounds": bounds, "neutral_mask": mask}


def _power_of_two(number: int) -> int:
    """Rounds a number up to a power of two, 1 at least."""
    return 1 << max(int(number) - 1, 0).bit_length()


def _no_bounds(size: int, count: int) -> np.ndarray:
    """Returns the bounds of padding, [size, count, 2]."""
    return np.tile(np.array([0, 1], np.int32), (size, count, 1))


def _check_training_arguments(
    sets: Sequence[Any],
    repeats: Sequence[float],
    batch_size: int,
    seed: int,
    process_index: int,
    process_count: int,
) -> None:
    if len(sets) != len(repeats):
        raise ElqError(
            f"repeats: {len(repeats)} numbers; expected one for each of the {len(sets)} sets of "
            "examples"
        )
    if not sets or not all(len(examples) for examples in sets):
        raise ElqError("examples: a set without examples; expected at least one in every set")
    if not all(repeat > 0 and math.isfinite(repeat) for repeat in repeats):
        raise ElqError(f"repeats: {list(repeats)}; expected finite numbers above 0")
    if not 0 <= seed < 2**32:
        raise ElqError(f"seed: {seed}; expected 0 to 2**32 - 1")
    if not 0 <= process_index < process_count:
        raise ElqError(
            f"process_index: {process_index}; expected 0 to {process_count - 1}, since there are "
            f"{process_count} processes"
        )
    if batch_size < 1 or batch_size % process_count:
        raise ElqError(
            f"batch_size: {batch_size}; expected a multiple of the number of processes, "
            f"{process_count}"
        )
