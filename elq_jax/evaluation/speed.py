"""Measures questions per second."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from elq_jax.linking.linker import EntityLinker
from elq_jax.linking.scoring import BATCHES_IN_FLIGHT


def measure_speed(
    linker: EntityLinker,
    texts: Sequence[str],
    threshold: float | None = None,
    batch_size: int = 64,
) -> dict[str, Any]:
    """Measures questions per second, from strings to `Link`s.

    All questions are linked twice. The first pass compiles programs and brings memory-mapped files
    into memory; the second one is measured.

    Args:
      linker: linker to measure.
      texts: questions, at least one.
      threshold: score that links must exceed; None: the linker's own.
      batch_size: number of questions encoded at a time.

    Returns:
      questions, batch_size, seconds and questions_per_second.
    """
    step = BATCHES_IN_FLIGHT * batch_size
    for _ in range(2):
        started = time.perf_counter()
        for start in range(0, len(texts), step):
            scored = linker.score_batch(texts[start : start + step], threshold, batch_size)
            linker.decode(scored, threshold)
        seconds = time.perf_counter() - started
    return {
        "questions": len(texts),
        "batch_size": batch_size,
        "seconds": seconds,
        "questions_per_second": len(texts) / seconds,
    }
