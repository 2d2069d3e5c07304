"""Runs functions on several devices: the only module that uses `jax.pmap`.

A step body sees its own slice of the batch and `AXIS`, over which it uses `lax.psum`-style
collectives and nothing else, so that a move to shard_map is a change of this file alone.
Arrays given to a parallel function have a leading axis [P, ...], the devices of this host among
those of the function. Those that are the same on all devices, such as parameters, are replicated
instead: they have no such axis, so that their memory can be used again for results.

Where a program runs as several processes (one per host), each runs the same lines with the same
inputs; `split` returns the part of a batch for the devices of a process, `merge` gathers the
results of all devices in every process. The first process writes files.
"""

from __future__ import annotations

import collections
import functools
import json
import os
import pathlib
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.experimental.compilation_cache import compilation_cache

from elq_jax.core import machine
from elq_jax.core.errors import ElqError

AXIS = "devices"
COMPUTE_DTYPES = ("auto", "float32", "bfloat16")  # of matrix products
_WORTHWHILE = 1.2  # The least ratio of float32's time to bfloat16's for which numbers are rounded.
# Each is set where several processes are meant to work together; JAX finds the rest by itself.
_CLUSTER_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "ELQ_JAX_DISTRIBUTED")


def initialize() -> None:
    """Joins the other processes of this program, if it was started as one of several.

    A program is one of several processes if $JAX_COORDINATOR_ADDRESS is set (together with
    $JAX_NUM_PROCESSES and $JAX_PROCESS_ID), or if $ELQ_JAX_DISTRIBUTED is set, with which JAX finds
    the other processes by itself: on TPU slices, under Slurm or Open MPI. Call this before anything
    else is done with JAX.

    Raises:
      ElqError: the other processes cannot be found or reached.
    """
    if not any(os.environ.get(name) for name in _CLUSTER_VARIABLES):
        return
    try:
        jax.distributed.initialize(
            coordinator_address=os.environ.get("JAX_COORDINATOR_ADDRESS"),
            num_processes=_number("JAX_NUM_PROCESSES"),
            process_id=_number("JAX_PROCESS_ID"),
        )
    except (ValueError, RuntimeError) as error:
        raise ElqError(
            f"the other processes of this program cannot be reached ({error}); set the environment "
            "variables JAX_COORDINATOR_ADDRESS (host:port of the first process), JAX_NUM_PROCESSES "
            "and JAX_PROCESS_ID, or none of them to run one process alone"
        ) from error
    _connect()


def _connect() -> None:
    """Connects all devices while the processes, which have just met, are at the same point.

    On CPUs a process waits 30 seconds for the others where it first exchanges something with them,
    and half an hour from then on. Later, one may compile for longer than the other.
    """
    devices = all_devices()
    ones = np.ones(len(local(devices)), np.float32)
    parallel(lambda one: jax.lax.psum(one, AXIS), devices)(ones).block_until_ready()
    wait_for_all("all processes are connected")


def use_compilation_cache() -> None:
    """Keeps compiled programs on disk, so that the next start does not compile them again.

    The folder is $ELQ_JAX_CACHE, else JAX's setting `jax_compilation_cache_dir`, else
    `~/.cache/elq_jax`. Nothing changes if $ELQ_JAX_CACHE is empty or the user has no home.
    """
    configured = jax.config.jax_compilation_cache_dir
    default = configured or os.path.expanduser("~/.cache/elq_jax")
    folder = os.environ.get("ELQ_JAX_CACHE", default)
    if folder and folder != configured and not folder.startswith("~"):
        compilation_cache.reset_cache()  # JAX looks for a folder once, when it first compiles.
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def compute_dtype(dtype: str, devices: Sequence[jax.Device] | None = None) -> str:
    """Returns the type of matrix products that a setting asks for, "float32" or "bfloat16".

    Args:
      dtype: one of `COMPUTE_DTYPES`; "auto" for the one that `fast_dtype` names.
      devices: devices of the products, of this process and perhaps of others; None: all.

    Raises:
      ElqError: there is no such type.
    """
    if dtype not in COMPUTE_DTYPES:
        raise ElqError(f"dtype: {dtype!r}; expected one of {', '.join(COMPUTE_DTYPES)}")
    return fast_dtype(devices)[0] if dtype == "auto" else dtype


def fast_dtype(devices: Sequence[jax.Device] | None = None) -> tuple[str, str]:
    """Returns the fastest type of matrix products of these devices, and why it is.

    That is bfloat16 on accelerators that have it, and on CPUs with units for it if a short
    measurement confirms that they are used. What is confirmed is remembered in the folder of
    compiled programs (`use_compilation_cache`). $ELQ_JAX_DTYPE overrules all this.
    Processes that share `devices` get the same answer, and must ask together.

    Args:
      devices: devices of the products, of this process and perhaps of others; None: all.

    Returns:
      "float32" or "bfloat16", and the reason as part of a sentence.

    Raises:
      ElqError: $ELQ_JAX_DTYPE is something else.
    """
    if asked := os.environ.get("ELQ_JAX_DTYPE"):
        if asked not in COMPUTE_DTYPES[1:]:
            raise ElqError(
                f"environment variable ELQ_JAX_DTYPE: {asked!r}; expected float32 or bfloat16"
            )
        return asked, "$ELQ_JAX_DTYPE says so"
    device = (local(devices) if devices else jax.local_devices())[0]
    if device.platform == "cpu":
        units = machine.bfloat16_units()
        speedup = _cpu_speedup(jax.config.jax_compilation_cache_dir)
        is_fast = speedup >= _WORTHWHILE
        name = f"this CPU has {units[0]}" if units else "this CPU has no units for bfloat16"
        reason = name
        if units:
            reason += f" and a product takes {1 / speedup:.2f} of its time in float32"
    else:
        # Before generation 8.0, NVIDIA's GPUs have no units for bfloat16.
        is_fast = not re.match(r"[1-7]\.", str(getattr(device, "compute_capability", "")))
        reason = f"this is a {device.device_kind}"
    if devices and len(local(devices)) < len(devices):
        is_fast = bool(multihost_utils.process_allgather(np.array(is_fast)).all())
    return "bfloat16" if is_fast else "float32", reason


def say_dtype(dtype: str, devices: Sequence[jax.Device] | None = None) -> None:
    """Prints which type "auto" has taken, and why, on stderr; nothing for other settings.

    Args:
      dtype: setting that was given, one of `COMPUTE_DTYPES`.
      devices: devices of the products, as for `fast_dtype`.
    """
    if dtype == "auto" and not os.environ.get("ELQ_JAX_DTYPE"):
        taken, reason = fast_dtype(devices)
        if is_main():
            print(f"dtype: auto takes {taken}, since {reason}", file=sys.stderr)


@functools.cache
def _cpu_speedup(folder: str | None) -> float:
    """Returns how many times as fast as in float32 a product is in bfloat16; 0 without units.

    Args:
      folder: folder of compiled programs, where the measurement is remembered, if there is one.
    """
    units = machine.bfloat16_units()
    if not units:
        return 0.0
    known: dict[str, float] = {}
    path = pathlib.Path(folder) / "elq_jax_bfloat16.json" if folder else None
    if path and "://" not in folder:
        try:
            known = {key: float(value) for key, value in json.loads(path.read_bytes()).items()}
        except (OSError, ValueError, AttributeError, TypeError):
            known = {}  # The first measurement, or a damaged file.
    key = " ".join((machine.cpu_model(), *units, str(os.cpu_count()), "jax", jax.__version__))
    if known.get(key, 0.0) < _WORTHWHILE:
        known[key] = _measure_speedup()
        # A busy machine hides a speedup, so one that is too small is measured again next time.
        if path and "://" not in folder and known[key] >= _WORTHWHILE:
            _remember(path, known)
    return known[key]


def _remember(path: pathlib.Path, values: Mapping[str, float]) -> None:
    """Writes a file of JSON whole, unless the folder cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            json.dump(values, file)
        os.replace(file.name, path)
    except OSError:
        pass  # The next process measures again.


def _measure_speedup() -> float:
    """Measures a product with the shape of a BERT's on the CPU, in both types alternately."""
    device = jax.local_devices(backend="cpu")[0]
    x, y = np.ones((512, 384), np.float32), np.ones((384, 1536), np.float32)
    product = jax.jit(lambda x, y: jnp.matmul(x, y, preferred_element_type=jnp.float32))
    operands = [jax.device_put((x.astype(t), y.astype(t)), device) for t in ("float32", "bfloat16")]
    seconds: list[list[float]] = [[], []]
    for number in range(24):
        for times, arrays in zip(seconds, operands, strict=True):
            start = time.perf_counter()
            product(*arrays).block_until_ready()
            times.append(time.perf_counter() - start)
        # Other load only adds to a time, and the first one compiles.
        speedup = min(seconds[0]) / min(seconds[1])
        if number >= 8 and speedup >= _WORTHWHILE:
            break
    return speedup


def _number(name: str) -> int | None:
    value = os.environ.get(name)
    if value is None:
        return None
    if not value.isdecimal():
        raise ElqError(f"environment variable {name}: {value!r}; expected an integer, at least 0")
    return int(value)


def is_main() -> bool:
    """Returns whether this process is the one that writes files and prints."""
    return jax.process_index() == 0


def wait_for_all(point: str) -> None:
    """Waits until every process has called this.

    Args:
      point: name of the point in the program, for errors where processes are at different points.
    """
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(point)


def all_devices(count: int | None = None) -> list[jax.Device]:
    """Returns the devices of all processes, in the same order in each.

    Args:
      count: number of devices to return, in a single process; None: all.

    Raises:
      ElqError: there are fewer devices, or several processes; or $JAX_PLATFORMS names an
        accelerator that this machine lacks.
    """
    try:
        devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    except (RuntimeError, AssertionError) as error:  # the latter for CUDA without a GPU
        reason = str(error).strip().partition("\n")[0] or "none of this kind was found"
        raise ElqError(
            f"no device to compute on: {reason}; JAX_PLATFORMS is "
            f"{os.environ.get('JAX_PLATFORMS')!r}; set it to cpu, or unset it to use the devices "
            "that this machine has"
        ) from error
    if count is None:
        return devices
    if jax.process_count() > 1:
        raise ElqError(
            f"num_devices: {count}; several processes work together and use all their devices; "
            "leave num_devices out"
        )
    if not 1 <= count <= len(devices):
        raise ElqError(
            f"num_devices: {count}; expected 1 to {len(devices)}, the number of "
            f"{devices[0].platform} devices of this machine"
        )
    return devices[:count]


def choose(devices: str | Sequence[jax.Device] | None = None) -> list[jax.Device]:
    """Returns devices by a platform's name.

    Args:
      devices: list of devices, or the name of a platform ("cpu", "gpu", "tpu") for its local
        devices; None: all local devices.

    Raises:
      ElqError: this machine has no such platform, or the argument is something else.
    """
    if devices is None:
        return local(all_devices())
    if isinstance(devices, str):
        try:
            return jax.local_devices(backend=devices)
        except RuntimeError as error:
            raise ElqError(
                f"devices: {devices!r}; expected a platform that JAX has here, such as "
                f"{jax.default_backend()!r}, or a list of devices"
            ) from error
    devices = list(devices)
    if not devices or not all(isinstance(device, jax.Device) for device in devices):
        raise ElqError(f"devices: {devices!r}; expected a platform's name, or a list of devices")
    return devices


def names_of(devices: Sequence[jax.Device]) -> list[tuple[str, int]]:
    """Returns names of devices, (platform, number), which can be written to a file."""
    return [(device.platform, device.id) for device in devices]


def with_names(names: Iterable[tuple[str, int]]) -> list[jax.Device] | None:
    """Returns the local devices with names by `names_of`; None if this process has none of them."""
    own = {(device.platform, device.id): device for device in jax.local_devices()}
    return [own[name] for name in names if name in own] or None


def local(devices: Sequence[jax.Device]) -> list[jax.Device]:
    """Returns those `devices` that belong to this process."""
    return [device for device in devices if device.process_index == jax.process_index()]


def parallel(
    function: Callable[..., Any],
    devices: Sequence[jax.Device],
    *,
    replicated: Sequence[int] = (),
    returns_replicated: bool = False,
    donate: int | Sequence[int] = (),
    static: int | Sequence[int] = (),
) -> Callable[..., Any]:
    """Compiles `function` to run on every device at once, each on its slice [P, ...] -> [...].

    Args:
      function: step body, which may use collectives over `AXIS`, whose index is the place in
        `devices`.
      devices: devices of this process, or `all_devices()`; then every process must call the result.
      replicated: positions of arguments that every device gets whole, see `replicate`.
      returns_replicated: whether the results are the same on every device, and are returned once.
      donate: positions of arguments whose memory may be reused for the results.
      static: positions of arguments that are compiled in.
    """

    @functools.cache
    def compiled(count: int) -> Callable[..., Any]:
        return jax.pmap(
            function,
            axis_name=AXIS,
            devices=devices,
            in_axes=tuple(None if i in replicated else 0 for i in range(count)),
            out_axes=None if returns_replicated else 0,
            donate_argnums=donate,
            static_broadcasted_argnums=static,
        )

    def run(*arguments: Any) -> Any:
        return compiled(len(arguments))(*arguments)

    run.lower = lambda *arguments: compiled(len(arguments)).lower(*arguments)
    return run


def sum_over_devices(tree: Any) -> Any:
    """Adds up the arrays of all devices, in a parallel function."""
    # A sum over one device would be a copy.
    return tree if jax.lax.axis_size(AXIS) == 1 else jax.lax.psum(tree, AXIS)


def replicate(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """Copies every array [...] of `tree` whole to each device of this process.

    The result is laid out as a parallel function lays out its own replicated results, so that a
    step given one or the other is compiled once.
    """
    return _put(jax.tree.map(np.asarray, tree), devices, jax.P())


def is_replicated(tree: Any, devices: Sequence[jax.Device]) -> bool:
    """Returns whether each of `devices` has a copy of each array of `tree`, as by `replicate`."""
    return all(
        isinstance(leaf, jax.Array)
        and isinstance(leaf.sharding, jax.sharding.NamedSharding)
        and leaf.sharding.is_fully_replicated
        and leaf.sharding.device_set == set(devices)
        for leaf in jax.tree.leaves(tree)
    )


def place(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """Starts copying row p of every array [P, ...] to this process's p-th device."""
    return _put(tree, devices, jax.P(AXIS))


def _put(tree: Any, devices: Sequence[jax.Device], axes: jax.P) -> Any:
    mesh = jax.sharding.Mesh(np.array(local(devices)), (AXIS,))
    return jax.device_put(tree, jax.sharding.NamedSharding(mesh, axes))


def unreplicate(tree: Any) -> Any:
    """Copies a replicated tree on the first device, so that it outlives the donation of `tree`."""
    return jax.tree.map(lambda x: jnp.copy(x.addressable_shards[0].data), tree)


def prefetch(
    batches: Iterable[Mapping[str, np.ndarray]], devices: Sequence[jax.Device], ahead: int = 2
) -> Iterator[tuple[Mapping[str, np.ndarray], dict[str, jax.Array]]]:
    """Splits batches over the devices and starts copying them before they are needed.

    Args:
      batches: batches of this process, each array [B, ...].
      devices: devices of `parallel`; only those of this process get data.
      ahead: number of batches copied in advance.

    Yields:
      each batch on the host, and on the devices: arrays [P, B / P, ...].
    """
    own = local(devices)
    queue: collections.deque[Any] = collections.deque()
    for batch in batches:
        queue.append((batch, place(split(batch, own), own)))
        if len(queue) > ahead:
            yield queue.popleft()
    yield from queue


def split(batch: Mapping[str, np.ndarray], devices: Sequence[jax.Device]) -> dict[str, np.ndarray]:
    """Splits a batch over devices, each array [B, ...] -> [P, B / len(devices), ...].

    Rows are added where the devices do not divide B; they are zeros, so every mask in the batch is
    False there. Where some devices are of other processes, the result has the part of this one.
    """
    own = [i for i, device in enumerate(devices) if device.process_index == jax.process_index()]
    part = slice(own[0], own[-1] + 1)
    return {name: _split_array(array, len(devices))[part] for name, array in batch.items()}


def merge(tree: Any, devices: Sequence[jax.Device], size: int | None = None) -> Any:
    """Joins results of devices, the inverse of `split`: [P, b, ...] -> [B, ...] NumPy, B = `size`.

    Where some devices are of other processes, every process gets the results of all of them.
    """
    if len(local(devices)) < len(devices):
        tree = multihost_utils.process_allgather(tree, tiled=True)

    def rows(array: Any) -> np.ndarray:
        array = np.asarray(array)
        return array.reshape(array.shape[0] * array.shape[1], *array.shape[2:])[:size]

    return jax.tree.map(rows, tree)


def _split_array(array: np.ndarray, num_devices: int) -> np.ndarray:
    size = len(array)
    missing = -size % num_devices
    if missing:
        array = np.concatenate([array, np.zeros((missing, *array.shape[1:]), array.dtype)])
    return array.reshape(num_devices, len(array) // num_devices, *array.shape[1:])
