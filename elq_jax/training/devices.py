"""The one home of multi-device execution: `jax.pmap` over the local devices.

A step body sees its own slice of the batch and `AXIS`, over which it uses `lax.psum`-style
collectives and nothing else, so that a move to shard_map is a change of this file alone.
Arrays given to a parallel function have a leading device axis [P, ...].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from elq_jax.errors import ElqError

AXIS = "devices"


def local_devices(count: int | None = None) -> list[jax.Device]:
    """The first `count` local devices, or all of them.

    Raises:
      ElqError: there are fewer.
    """
    devices = jax.local_devices()
    if count is None:
        return devices
    if not 1 <= count <= len(devices):
        raise ElqError(
            f"num_devices: {count}; this host has {len(devices)} {devices[0].platform} device(s)"
        )
    return devices[:count]


def parallel(
    function: Callable[..., Any],
    devices: Sequence[jax.Device] | None = None,
    *,
    donate: int | Sequence[int] = (),
    static: int | Sequence[int] = (),
) -> Callable[..., Any]:
    """Compiles `function` to run on every device at once, each on its slice [P, ...] -> [...].

    Args:
      function: the step body; may use collectives over `AXIS`.
      devices: P devices; all local ones by default.
      donate: positions of arguments whose memory may be reused for the results.
      static: positions of arguments that are compiled in.
    """
    return jax.pmap(
        function,
        axis_name=AXIS,
        devices=devices,
        donate_argnums=donate,
        static_broadcasted_argnums=static,
    )


def replicate(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """Copies every array of `tree` to all devices: [...] -> [P, ...].

    The result is laid out as a parallel function lays out its own results, so that a step given
    one or the other is compiled once.
    """

    def copies(x: Any) -> jax.Array:
        x = np.asarray(x)
        return place(np.broadcast_to(x, (len(devices), *x.shape)), devices)

    return jax.tree.map(copies, tree)


def place(array: np.ndarray, devices: Sequence[jax.Device]) -> jax.Array:
    """Puts row p of [P, ...] on device p."""
    mesh = jax.sharding.Mesh(np.array(devices), (AXIS,))
    return jax.device_put(array, jax.sharding.NamedSharding(mesh, jax.P(AXIS)))


def unreplicate(tree: Any) -> Any:
    """The first device's copy of a replicated tree, without moving the others."""
    return jax.tree.map(lambda x: x.addressable_shards[0].data[0], tree)


def split(batch: Mapping[str, np.ndarray], num_devices: int) -> dict[str, np.ndarray]:
    """Cuts a batch over devices: each array [B, ...] -> [P, B / P, ...].

    Rows are added where P does not divide B; they are zeros, so every mask in the batch is False
    there.
    """
    return {name: _split_array(array, num_devices) for name, array in batch.items()}


def merge(array: jax.Array | np.ndarray, size: int | None = None) -> np.ndarray:
    """The inverse of `split` for a result: [P, b, ...] -> [P * b, ...], cut to `size` rows."""
    array = np.asarray(array)
    return array.reshape(-1, *array.shape[2:])[:size]


def _split_array(array: np.ndarray, num_devices: int) -> np.ndarray:
    size = len(array)
    missing = -size % num_devices
    if missing:
        array = np.concatenate([array, np.zeros((missing, *array.shape[1:]), array.dtype)])
    return array.reshape(num_devices, -1, *array.shape[1:])
