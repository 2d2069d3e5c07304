"""Questions per second, and the machine and memory they took."""

from __future__ import annotations

import contextlib
import os
import pathlib
import platform
import re
import sys
import time
from collections.abc import Sequence
from typing import Any

from elq_jax.evaluation.predictions import BATCHES_AT_ONCE
from elq_jax.linking.linker import EntityLinker


def measure_speed(
    linker: EntityLinker,
    texts: Sequence[str],
    threshold: float | None = None,
    batch_size: int = 64,
) -> dict[str, Any]:
    """Links all questions twice, from strings to `Link`s, and times the second pass.

    The first pass compiles whatever was not compiled yet and brings memory-mapped files into
    memory, so neither is in the figure.

    Args:
      linker: what is measured.
      texts: the questions, at least one.
      threshold: instead of the linker's own.
      batch_size: questions encoded at a time.

    Returns:
      questions, batch_size, seconds and questions_per_second.
    """
    step = BATCHES_AT_ONCE * batch_size
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


def describe_machine() -> dict[str, Any]:
    """Names the hardware: cpu, cores (that this process may use), device, num_devices."""
    import jax

    devices = jax.local_devices()
    usable = getattr(os, "sched_getaffinity", None)
    return {
        "cpu": _cpu_model(),
        "cores": len(usable(0)) if usable else os.cpu_count(),
        "device": devices[0].device_kind,
        "num_devices": len(devices),
    }


def peak_memory() -> int:
    """Most memory that this process has had resident so far, in bytes; mapped files count."""
    try:
        status = pathlib.Path("/proc/self/status").read_text(encoding="utf-8")
        [peak] = re.findall(r"^VmHWM:\s*(\d+) kB", status, re.MULTILINE)
        return int(peak) * 1024
    except (OSError, ValueError):  # not Linux
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        text = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8")
        if found := re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE):
            return found[1]
    return platform.processor() or platform.machine()
