"""Describes the machine that a number was measured on: names, memory, peak speed."""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import pathlib
import platform
import re
import sys
from typing import Any

from elq_jax.core.errors import ElqError

# Device kind -> FLOP/s in bfloat16 and in what float32 products are computed in by default: TF32 on
# NVIDIA, bfloat16 on TPUs. Dense, of one JAX device: a core of TPU v2 and v3, a chip of the others.
# Sources: NVIDIA's data sheets; Google Cloud TPU documentation. First match wins.
_PEAKS = (
    (r"\bH200 NVL\b|\bH100 NVL\b", 835e12, 418e12),
    (r"\bH100 PCIe\b", 756e12, 378e12),
    (r"\bH[12]00\b", 989e12, 494e12),
    (r"\bA100\b", 312e12, 156e12),
    (r"\bL4\b", 121e12, 60e12),
    (r"\bT4\b", 65e12, 8.1e12),  # float16 and float32: it has neither bfloat16 nor TF32.
    (r"^TPU v2$", 22.5e12, 22.5e12),
    (r"^TPU v3$", 61.5e12, 61.5e12),
    (r"^TPU v4$", 275e12, 275e12),
    (r"^TPU v5( lite|e)$", 197e12, 197e12),
    (r"^TPU v5p?$", 459e12, 459e12),
    (r"^TPU v6( lite|e)$", 918e12, 918e12),
)

# Parameters of glibc's mallopt: one heap for all threads (M_ARENA_MAX), no block outside of it
# (M_MMAP_MAX), and no part of it returned (M_TRIM_THRESHOLD).
_MALLOC_OPTIONS = ((-8, 1), (-4, 0), (-1, -1))

_LEAST_ADDRESS_SPACE = 1.75 * 2**30  # of the demo's `link` on two cores, a small linker


def peak_flops(device_kind: str, dtype: str = "bfloat16") -> float | None:
    """Returns the highest FLOP/s of a device's matrix units.

    Args:
      device_kind: `jax.Device.device_kind`, such as "NVIDIA H200" or "TPU v5 lite".
      dtype: type of the matrix products, "bfloat16" or "float32" (at JAX's default precision).

    Returns:
      the published figure; None for other devices and types.
    """
    column = {"bfloat16": 0, "float32": 1}.get(str(dtype))
    for pattern, *peaks in _PEAKS:
        if re.search(pattern, device_kind):
            return None if column is None else peaks[column]
    return None


def describe_machine() -> dict[str, Any]:
    """Describes the hardware: cpu, cores (that this process may use), device, num_devices."""
    import jax

    devices = jax.local_devices()
    usable = getattr(os, "sched_getaffinity", None)
    return {
        "cpu": cpu_model(),
        "cores": len(usable(0)) if usable else os.cpu_count(),
        "device": devices[0].device_kind,
        "num_devices": len(devices),
    }


def cpu_flags() -> list[str]:
    """Returns the names that this CPU's features have in Linux; none on other systems."""
    return _cpu_info("flags|Features").split()


def bfloat16_units() -> list[str]:
    """Returns the flags of this CPU that stand for products of bfloat16 numbers, fastest first."""
    flags = cpu_flags()
    return [name for name in ("amx_bf16", "avx512_bf16", "bf16") if name in flags]


def peak_memory() -> int:
    """Returns the most memory that this process has had resident so far, in bytes.

    Mapped files count. Memory of the parent process does not, unlike in `resource.getrusage`, which
    is only used where there is no /proc.
    """
    try:
        status = pathlib.Path("/proc/self/status").read_text(encoding="utf-8")
        [peak] = re.findall(r"^VmHWM:\s*(\d+) kB", status, re.MULTILINE)
        return int(peak) * 1024
    except (OSError, ValueError):  # not Linux
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def check_address_space() -> None:
    """Raises an ElqError where a limit (`ulimit -v`) leaves too little to load the libraries.

    Under such a limit some of them end the process or wait forever, instead of raising an error.
    """
    try:
        import resource
    except ImportError:  # not Unix
        return
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY and limit < _LEAST_ADDRESS_SPACE:
        raise ElqError(
            f"out of memory: this process may use {limit / 2**30:.2f} GiB of address space, and "
            f"JAX and the other libraries need {_LEAST_ADDRESS_SPACE / 2**30:g} GiB before any "
            "work is done; raise the limit (ulimit -v)"
        )


def keep_freed_memory() -> None:
    """Keeps freed memory in this process, for whatever needs memory next.

    The C library returns large blocks to the system at once, which clears every page of the next
    one: a fifth of a training step's processor time. Call this before other threads are started.
    It changes nothing where the C library is not glibc.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        set_option = ctypes.CDLL(None).mallopt
        for option, value in _MALLOC_OPTIONS:
            set_option(option, value)


def return_freed_memory(limit: int | None = None) -> None:
    """Returns kept memory to the system where this process has much; see `keep_freed_memory`.

    Blocks of many sizes leave holes in which the next one has no room, so what is kept can grow to
    several times what is used. Call this where little is used, such as after a training step.

    Args:
      limit: number of resident bytes up to which all is kept; a quarter of the machine's by
        default.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError, ValueError):
        page = os.sysconf("SC_PAGE_SIZE")
        if limit is None:
            limit = os.sysconf("SC_PHYS_PAGES") * page // 4
        resident = int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * page
        if resident > limit:
            ctypes.CDLL(None).malloc_trim(0)


def cpu_model() -> str:
    """Returns the name of this CPU."""
    return _cpu_info(r"model name") or platform.processor() or platform.machine()


def _cpu_info(name: str) -> str:
    """Returns what Linux says about the first CPU under a name, a regular expression; else ""."""
    text = ""
    with contextlib.suppress(OSError):
        text = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8")
    match = re.search(rf"^(?:{name})\s*:\s*(.+)$", text, re.MULTILINE)
    return match[1] if match else ""


def is_closed(stream: io.TextIOBase | None) -> bool:
    """Returns whether the program was started without this stream (stdin, stdout, stderr)."""
    return stream is None or getattr(stream, "name", None) == os.devnull
