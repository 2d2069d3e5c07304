"""Hooks called after each training step: clock, trace, metrics, dev, checkpoints.

The loop calls every hook after every step, in the order of its list. Hooks only read the training
state; the step alone changes it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import pathlib
import sys
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import jax
import numpy as np

from elq_jax.core import devices as devices_lib
from elq_jax.core import machine
from elq_jax.core.errors import ElqError
from elq_jax.evaluation.matching import Metric
from elq_jax.evaluation.scores import Evaluation
from elq_jax.evaluation.sweep import best_common_threshold
from elq_jax.storage.remote import Workdir
from elq_jax.training.checkpoints import Checkpoints
from elq_jax.training.metrics import MetricsWriter
from elq_jax.training.optimizer import TrainState

T = TypeVar("T")
Batch = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Due:
    """Actions that are due after a step.

    Attributes:
      metrics: whether a line of metrics is due; it also comes before each evaluation and
        checkpoint, so that NaN is seen.
      score: whether an evaluation on dev is due.
      save: whether a checkpoint is due.
    """

    metrics: bool
    score: bool
    save: bool

    @classmethod
    def after(
        cls, step: int, num_steps: int, settings: Mapping[str, Any], scores: bool, stopping: bool
    ) -> Due:
        """Decides which actions are due after `step` of `num_steps`.

        Args:
          step: number of steps taken.
          num_steps: length of the stage, after whose last step everything is due.
          settings: section of the configuration.
          scores: whether the stage is evaluated on dev.
          stopping: whether the run stops after this step.
        """
        is_last = step == num_steps
        save = is_last or stopping or step % settings["checkpoint_every"] == 0
        score = scores and (is_last or step % settings["eval_every"] == 0)
        return cls(save or score or step % settings["log_every"] == 0, score, save)


@dataclasses.dataclass(frozen=True)
class StepResult:
    """Holds the result of a step that was just taken.

    Attributes:
      step: number of steps taken so far, this one included.
      state: training state after it, on the devices; the next step reuses its memory.
      metrics: values of the step, on the devices and not waited for.
      batch: batch that this process learned from.
      flops: floating-point operations of the model, over all devices.
      due: actions that are due after it.
    """

    step: int
    state: TrainState
    metrics: Mapping[str, jax.Array]
    batch: Batch
    flops: float
    due: Due

    @functools.cached_property
    def params(self) -> Any:
        """Returns one copy of the parameters after the step, from the first device."""
        return devices_lib.unreplicate(self.state.params)


class Hook(Protocol):
    """Protocol of hooks, which act after each training step."""

    def after_step(self, result: StepResult) -> None:
        """Acts on the result of a step; called once after every step."""
        ...


class Clock:
    """Measures the training time since the last line of metrics."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Starts the time from 0."""
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Returns the seconds since the start, without pauses."""
        return time.monotonic() - self._started

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stops the clock until the block ends."""
        before = time.monotonic()
        yield
        self._started += time.monotonic() - before


class Shares:
    """Adds up where the time of a stage goes, by the names of its parts."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Counts the time of a block for a part."""
        start = time.monotonic()
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + time.monotonic() - start

    def of_next(self, name: str, items: Iterable[T]) -> Iterator[T]:
        """Yields items, and counts the time of waiting for each of them for a part."""
        iterator, end = iter(items), object()
        while True:
            with self.of(name):
                item = next(iterator, end)
            if item is end:
                return
            yield item

    def __str__(self) -> str:
        total = sum(self._seconds.values())
        parts = sorted(self._seconds.items(), key=lambda part: -part[1])
        shares = ", ".join(f"{name} {seconds / total:.1%}" for name, seconds in parts if seconds)
        return f"{total / 60:.1f} min: {shares}" if total else "no time"


class Pace:
    """Takes one step at a time on CPUs, and keeps what memory the next one needs.

    Steps that waited would each hold memory already. What compiling a step leaves is returned.

    Args:
      devices: devices that take the steps.
    """

    def __init__(self, devices: Sequence[jax.Device]):
        self._is_on_cpu, self._shapes = devices[0].platform == "cpu", set[Hashable]()

    def after_step(self, metrics: Any, shape: Hashable) -> None:
        """Waits for a step; `shape` names the program that took it."""
        if not self._is_on_cpu:
            return
        jax.block_until_ready(metrics)
        machine.return_freed_memory(None if shape in self._shapes else 0)
        self._shapes.add(shape)


class Profile:
    """Traces some steps, for TensorBoard and XProf.

    Args:
      folder: folder of the trace.
      first_step: number of steps taken before this start.
      num_steps: number of steps to trace, after the first few, which compile; 0: none.
      clock: clock that is stopped while the trace begins and ends.
    """

    _SKIPPED = 2  # Steps that are mostly compilation.

    def __init__(self, folder: pathlib.Path, first_step: int, num_steps: int, clock: Clock):
        self._folder, self._num_steps, self._clock = folder, num_steps, clock
        self._begin = first_step + self._SKIPPED
        self._running = False

    def after_step(self, result: StepResult) -> None:
        """Begins or ends the trace."""
        if self._num_steps and result.step == self._begin:
            with self._clock.paused():
                jax.block_until_ready(result.state)
                jax.profiler.start_trace(self._folder)
            self._running = True
        elif self._running and result.step == self._begin + self._num_steps:
            with self._clock.paused():
                jax.block_until_ready(result.state)
                self.close()
            say(f"traced {self._num_steps} steps: {self._folder}")

    def close(self) -> None:
        """Ends the trace if it is running."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()


class Metrics:
    """Prints means of the losses and rates, and writes them to metrics.jsonl.

    Args:
      name: name of the stage.
      num_steps: length of the stage.
      devices: devices of all processes.
      dtype: type of the matrix products, for the share of the devices' peak (MFU).
      learning_rate: function from a step to its learning rate.
      writer: writer of metrics.jsonl.
      clock: clock that measures the rates.

    Raises:
      ElqError: when a line is due, if a mean is not finite.
    """

    def __init__(
        self,
        name: str,
        num_steps: int,
        devices: Sequence[jax.Device],
        dtype: str,
        learning_rate: Callable[[int], float],
        writer: MetricsWriter,
        clock: Clock,
    ):
        self._name, self._num_steps = name, num_steps
        self._learning_rate, self._writer, self._clock = learning_rate, writer, clock
        peak = machine.peak_flops(devices[0].device_kind, dtype)
        self._peak = None if peak is None else peak * len(devices)
        self._restart()

    def _restart(self) -> None:
        self._metrics: list[Mapping[str, jax.Array]] = []
        self._examples = self._tokens = 0
        self._flops = 0.0
        self._clock.restart()

    def after_step(self, result: StepResult) -> None:
        """Adds the values of the step; prints and writes a line if it is due."""
        self._metrics.append(result.metrics)
        self._flops += result.flops
        self._examples += int(result.batch["example_mask"].sum()) * jax.process_count()
        self._tokens += int(result.batch["mask"].sum()) * jax.process_count()
        if not result.due.metrics:
            return
        steps = [devices_lib.unreplicate(metrics) for metrics in self._metrics]
        means = {name: float(np.mean([step[name] for step in steps])) for name in steps[0]}
        check_finite(means, self._name)
        rates = self._rates(self._clock.seconds)
        self._say(result.step, means, rates)
        means["learning_rate"] = self._learning_rate(result.step - 1)
        self._writer.write(result.step, means | rates)
        self._restart()

    def _rates(self, seconds: float) -> dict[str, float]:
        rates = {
            "seconds_per_step": seconds / len(self._metrics),
            "examples_per_second": self._examples / seconds,
            "tokens_per_second": self._tokens / seconds,
            "model_flops_per_second": self._flops / seconds,
        }
        if self._peak:
            rates["mfu"] = rates["model_flops_per_second"] / self._peak
        return rates

    def _say(self, step: int, means: Mapping[str, float], rates: Mapping[str, float]) -> None:
        seconds = rates["seconds_per_step"]
        speed = f"{rates['model_flops_per_second'] / 1e9:,.0f} GFLOP/s"
        if "mfu" in rates:
            speed = f"MFU {rates['mfu']:.0%}"
        say(
            f"{self._name}: step {step} of {self._num_steps}, loss {means['loss']:.3f} (span "
            f"{means['span_loss']:.4f}, linking {means['linking_loss']:.3f}), "
            f"{seconds:.2f} s/step, {rates['examples_per_second']:.0f} examples/s, "
            f"{rates['tokens_per_second']:.0f} tokens/s, {speed}, "
            f"{(self._num_steps - step) * seconds / 60:.1f} min left"
        )


def check_finite(values: Mapping[str, float], stage: str) -> None:
    """Raises an ElqError that names the values that are NaN or infinite."""
    infinite = {name: value for name, value in values.items() if not math.isfinite(value)}
    if infinite:
        raise ElqError(
            f"{stage}: {', '.join(f'{name} is {value}' for name, value in infinite.items())}; the "
            "newest checkpoint was saved before that. Lower learning_rate or max_grad_norm and "
            "start in another workdir"
        )


class KeepBest:
    """Scores the parameters on dev and keeps the best of the run, of equal ones the earliest.

    Args:
      evaluate: function that links each dev set, by name, with the parameters of a training state,
        on the devices.
      keep: function that writes one copy of the parameters, and their best threshold.
      metric: F1 whose mean over the dev sets decides, "weak" or "strong".
      record: record of the checkpoints, whose `best_f1` and `best_step` are kept up to date.
      writer: writer of metrics.jsonl.
      clock: clock that is stopped during evaluations.
    """

    def __init__(
        self,
        evaluate: Callable[[Any], Mapping[str, Evaluation]],
        keep: Callable[[Any, float], None],
        metric: Metric,
        record: dict[str, Any],
        writer: MetricsWriter,
        clock: Clock,
    ):
        self._evaluate, self._keep, self._metric = evaluate, keep, metric
        self._record, self._writer, self._clock = record, writer, clock

    def after_step(self, result: StepResult) -> None:
        """Evaluates if dev is due; keeps the parameters if they are better than all before."""
        if not result.due.score:
            return
        with self._clock.paused():
            scores = dev_scores(self._evaluate(result.state.params), self._metric)
            shown = ", ".join(f"{name[4:]} {value:.3f}" for name, value in scores.items())
            say(f"step {result.step}, dev: {shown}")
            self._writer.write(result.step, scores)
            f1 = scores[f"dev_{self._metric}_f1"]
            if f1 > self._record["best_f1"]:
                self._record.update(best_f1=f1, best_step=result.step)
                self._keep(result.params, scores["dev_threshold"])


def dev_scores(evaluations: Mapping[str, Evaluation], metric: Metric) -> dict[str, float]:
    """Returns F1 on dev at the threshold that is best for `metric`, and that threshold.

    Args:
      evaluations: predictions on each dev set, by name.
      metric: F1 whose mean over the sets is highest at the threshold.

    Returns:
      dev_weak_f1 and dev_strong_f1, the means over the sets; dev_threshold; and, where there are
      several sets, the F1 of each: "dev_weak_f1/NAME" and "dev_strong_f1/NAME".
    """
    sweeps = {name: evaluation.sweep for name, evaluation in evaluations.items()}
    threshold, _ = best_common_threshold(list(sweeps.values()), metric)
    scores, of_sets = {}, {}
    for kind in ("weak", "strong"):
        f1 = {name: float(s.f1(kind)[s.index(threshold)]) for name, s in sweeps.items()}
        scores[f"dev_{kind}_f1"] = float(np.mean(list(f1.values())))
        of_sets |= {f"dev_{kind}_f1/{name}": value for name, value in f1.items()}
    return scores | {"dev_threshold": threshold} | (of_sets if len(sweeps) > 1 else {})


class Save:
    """Saves checkpoints, each after the files that its record names.

    Args:
      checkpoints: checkpoints of the stage.
      record: values that are saved beside the arrays.
      workdir: workdir where metrics are published with every checkpoint.
      name: name of the stage.
    """

    def __init__(
        self, checkpoints: Checkpoints, record: dict[str, Any], workdir: Workdir, name: str
    ):
        self._checkpoints, self._record = checkpoints, record
        self._workdir, self._name = workdir, name

    def after_step(self, result: StepResult) -> None:
        """Saves if a checkpoint is due."""
        if result.due.save:
            self._checkpoints.save(devices_lib.unreplicate(result.state), self._record)
            if devices_lib.is_main():
                self._workdir.publish(f"{self._name}/metrics.jsonl", f"{self._name}/curves.png")


def say(text: str) -> None:
    """Prints a line on stderr; of several processes, only the first prints."""
    if devices_lib.is_main():
        print(text, file=sys.stderr, flush=True)
