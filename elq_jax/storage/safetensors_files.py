"""Writes safetensors files that are larger than the memory."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping

import numpy as np

from elq_jax.storage.files import atomic_write


def write_safetensors(
    path: str | os.PathLike[str],
    shapes: Mapping[str, tuple[int, ...]],
    read: Callable[[str], np.ndarray],
) -> str:
    """Writes float32 tensors to a file, with one tensor at a time in memory.

    Args:
      path: path of the file, which appears when it is whole.
      shapes: shapes of all tensors, by name.
      read: function from a name to the tensor.

    Returns:
      SHA-256 of the file.
    """
    header, offset = {}, 0
    for name, shape in shapes.items():
        end = offset + 4 * int(np.prod(shape, dtype=np.int64))
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    digest = hashlib.sha256()
    with atomic_write(path) as file:

        def write(data: bytes | memoryview) -> None:
            digest.update(data)
            file.write(data)

        write(len(encoded).to_bytes(8, "little") + encoded)
        for name, shape in shapes.items():
            array = np.asarray(read(name), "<f4", order="C")
            assert array.shape == tuple(shape), (name, array.shape, shape)
            write(array.reshape(-1).data)
    return digest.hexdigest()
