"""Describes the stages of training, and makes the batches of each stage."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from elq_jax.core import devices as devices_lib
from elq_jax.questions.batches import TrainingBatches
from elq_jax.questions.examples import TrainingExample
from elq_jax.text.padding import bucket
from elq_jax.training import mining
from elq_jax.training.optimizer import recipe_of
from elq_jax.training.step import Objective, train_step_flops

if TYPE_CHECKING:
    from elq_jax.training.run import Run

Batch = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Stage:
    """Describes a stage of training: what learns, against what, and which parameters are kept.

    Attributes:
      name: section of the configuration, and folder in the workdir.
      part: encoder that learns, "question"; None: both of them.
      has_table: whether mentions are linked against the frozen vectors of all entities, spread over
        the devices. Otherwise batches hold the tokens of their entities, which are encoded in the
        step, and negatives are mined every `mine_every` steps of the section.
      keeps_best: whether the result is the best parameters on dev; otherwise it is the last ones.
    """

    name: str
    part: str | None
    has_table: bool
    keeps_best: bool

    @property
    def result(self) -> str:
        """Returns the folder of the stage's result, below the workdir."""
        return f"{self.name}/{'best' if self.keeps_best else 'model'}"


# In the order in which they run.
STAGES = (
    Stage("bi_encoder", part=None, has_table=False, keeps_best=False),
    Stage("joint", part="question", has_table=True, keeps_best=True),
)


class StageBatches:
    """Makes the batches of a stage; they depend on the configuration and the step alone.

    Args:
      run: model, devices and questions of the run.
      stage: stage of the batches.

    Attributes:
      num_steps: length of the stage.
      plan: batches without mined negatives, which say how long an epoch is.
    """

    def __init__(self, run: Run, stage: Stage):
        self._run, self._stage = run, stage
        self._settings = run.config[stage.name]
        self.plan = self._batches(run.examples)
        epochs = math.ceil(self._settings.num_epochs * self.plan.steps_per_epoch)
        self.num_steps = self._settings.num_steps or epochs

    def iterate(
        self,
        first_step: int,
        params: Callable[[], Any],
        paused: Callable[[], contextlib.AbstractContextManager[None]],
    ) -> Iterator[tuple[Batch, dict[str, jax.Array]]]:
        """Yields the remaining batches, on the host and on the devices.

        Args:
          first_step: number of steps taken before.
          params: function that returns the parameters after the batches yielded so far.
          paused: context opened around the mining of negatives, to leave it out of the rates.
        """
        mine_every = 0 if self._stage.has_table else self._settings.mine_every
        step = first_step
        while step < self.num_steps:
            batches, stop = self.plan, self.num_steps
            if mine_every:
                with paused():
                    batches = self._mined_batches(step // mine_every * mine_every, params)
                stop = min(stop, (step // mine_every + 1) * mine_every)
            part = itertools.islice(batches.iterate(step), stop - step)
            if not self._stage.has_table:
                part = map(self._run.with_entity_tokens, part)
            yield from devices_lib.prefetch(part, self._run.devices)
            step = stop

    def _mined_batches(self, step: int, params: Callable[[], Any]) -> TrainingBatches:
        """Makes batches with the negatives used from a step on (none before the first mining)."""
        if not step:
            return self.plan
        folder = f"{self._stage.name}/mined_{step}"
        return self._batches(mining.mine(self._run, self._settings, folder, params))

    def _batches(self, examples: Sequence[Sequence[TrainingExample]]) -> TrainingBatches:
        config, longest = self._run.config, self._run.model.config.max_question_tokens
        return TrainingBatches(
            examples,
            self._settings.batch_size,
            config.seed,
            shuffle=recipe_of(config)[0].shuffle,
            repeats=config.train_repeats or [1.0] * len(examples),
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            length_buckets=[*(size for size in config.length_buckets if size < longest), longest],
            pad_id=self._run.model.tokenizer.pad_id,
        )


def count_queries(batch: Batch, num_devices: int) -> int:
    """Returns Q: the number of mentions on the device that has most, rounded up to a few sizes.

    Each size compiles one program. Q is the same in every process. The rows of a process are
    consecutive, and are split over its devices.

    Args:
      batch: batch of this process, see `TrainingBatches`.
      num_devices: number of devices of all processes.
    """
    processes = jax.process_count()
    rows, mentions = batch["gold_mask"].shape
    examples = -(-rows // (num_devices // processes))  # of a device
    counts = np.zeros((processes, num_devices // processes * examples), np.int32)
    counts[:, :rows] = batch["mention_counts"].reshape(processes, rows)
    most = int(counts.reshape(num_devices, examples).sum(axis=1).max())
    room = examples * mentions
    sizes = [size for size in (examples * 3 // 2, examples * 2, examples * 3) if size < room]
    return bucket(most, [*sizes, room])


def step_flops(
    run: Run, stage: Stage, objective: Objective, batch: Batch, num_queries: int
) -> float:
    """Counts the floating-point operations of the model in one step, over all devices.

    Args:
      run: catalogue and devices of the run.
      stage: stage of the step.
      objective: objective of the step.
      batch: batch of this process.
      num_queries: number of mentions linked on each device, padding included.
    """
    rows, tokens = batch["input_ids"].shape
    shape = rows * jax.process_count(), tokens, num_queries * len(run.devices)
    if stage.has_table:
        return train_step_flops(objective, *shape, len(run.catalogue))
    *_, entities, entity_tokens = batch["entity_ids"].shape
    return train_step_flops(objective, *shape, None, entity_tokens, entities - 1)
