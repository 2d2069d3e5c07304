"""Settings of an evaluation, from which flags of `evaluate` are made."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec

from elq_jax.core.errors import ElqError

FILES = ("report.json", "predictions.jsonl", "errors.jsonl", "curve.png", "calibration.png")
PathSet = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


@dataclasses.dataclass(frozen=True)
class Options:
    """Holds the settings of an evaluation.

    Attributes:
      tune: paths of labelled questions to choose the threshold on; with several sets, the mean of
        their F1 decides. A set may be several paths, which are pooled.
      threshold: score that links must exceed; None: the best threshold on `tune`, or else the
        linker's own.
      batch_size: number of questions encoded at a time.
      metric: F1 that is best at the threshold chosen on --tune: with weak or strong matches.
      floor: lowest score of the links that are made; thresholds above it can be tried without
        linking again.
      on_error: action at a line that cannot be used: stop, or skip it and report it.
      speed: whether to measure questions per second, for which all questions are linked twice more.
      against: path of an earlier run to compare with: the folder that it wrote, its
        predictions.jsonl, or what `link` wrote for the same questions.
      perturb: whether to measure the cost of emoji, symbols, capitals, small letters, a missing
        question mark, a typo and missing apostrophes.
      seed: seed of intervals and of --perturb.

    Raises:
      ElqError: `tune` and `threshold` are both given, or no score can exceed a threshold.
    """

    tune: Sequence[PathSet] = ()
    threshold: float | None = None
    batch_size: int = 64
    metric: Literal["weak", "strong"] = "weak"
    floor: float = -8.0
    on_error: Literal["stop", "skip"] = "stop"
    speed: bool = True
    against: str | os.PathLike[str] | None = None
    perturb: bool = False
    seed: Annotated[int, msgspec.Meta(ge=0)] = 0

    def __post_init__(self):
        if self.tune and self.threshold is not None:
            raise ElqError("--tune, --threshold: both decide the threshold; give one of them")
        for name, score in (("threshold", self.threshold), ("floor", self.floor)):
            if score is not None and not score < math.inf:
                raise ElqError(
                    f"--{name}: {score}; no score exceeds it, so nothing would be linked. Give a "
                    "negative number such as -4.5"
                )
