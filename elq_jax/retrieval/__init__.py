"""Entity embeddings and search over them: `search(queries, k)` is the same for every index."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Protocol

import jax
import numpy as np

from elq_jax.core import devices as devices_lib
from elq_jax.core.errors import ElqError
from elq_jax.entities.embeddings import Embeddings
from elq_jax.retrieval.exact import ExactIndex, Table
from elq_jax.retrieval.scann import ScannIndex, is_saved
from elq_jax.retrieval.sharded import ShardedIndex, place_table

INDEX_KINDS = ("auto", "exact", "scann")


class Index(Protocol):
    """What finds entities.

    Attributes:
      kind: "exact" or "scann".
      shape: (E, D).
    """

    kind: str
    shape: tuple[int, int]

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the k entities with the highest inner product.

        Args:
          queries: [Q, D] float, finite.
          k: 1 <= k <= E.

        Returns:
          scores [Q, k] float32, descending, and rows [Q, k] int32.

        Raises:
          ElqError: wrong width, NaN or infinity in a query, k out of range.
        """
        ...


def _is_shared(devices: Sequence[jax.Device]) -> bool:
    """Whether exact search divides the table over devices: on several accelerators or hosts.

    The virtual devices of one CPU search the memory-mapped table faster than copies of its parts.
    """
    return len(devices_lib.local(devices)) < len(devices) or (
        len(devices) > 1 and devices[0].platform != "cpu"
    )


def exact_index(
    embeddings: Embeddings | np.ndarray,
    devices: Sequence[jax.Device],
    table: Table | None = None,
) -> Index:
    """Exact search by the devices of a linker, of this process and perhaps of others.

    Args:
      embeddings: [E, D].
      devices: those that search.
      table: of `place_table`, if the devices hold the embeddings already.
    """
    if _is_shared(devices):
        return ShardedIndex(table or place_table(embeddings, devices), devices)
    return ExactIndex(embeddings)


def open_index(
    folder: str | os.PathLike[str],
    embeddings: Embeddings | np.ndarray,
    kind: str = "auto",
    devices: Sequence[jax.Device] | None = None,
) -> Index:
    """Opens an index.

    Args:
      folder: where `build_index` saved one; need not exist for exact search.
      embeddings: [E, D].
      kind: "exact" (over the embeddings; needs nothing saved), "scann" (the saved one), or "auto":
        the saved one if there is one, else exact.
      devices: of the exact search; all of this process by default.

    Raises:
      ElqError: unknown kind, no index saved, damaged, or built over other embeddings.
    """
    if kind not in INDEX_KINDS:
        raise ElqError(f"index {kind!r}: expected one of {', '.join(INDEX_KINDS)}")
    if kind == "exact" or (kind == "auto" and not is_saved(folder)):
        devices = devices or devices_lib.local(devices_lib.all_devices())
        return exact_index(embeddings, devices)
    if not is_saved(folder):
        source = embeddings.folder if isinstance(embeddings, Embeddings) else "EMBEDDINGS"
        raise ElqError(
            f"{folder}: no ScaNN index here; build one: python -m elq_jax.build_index "
            f"--kind scann --embeddings {source} --output {folder}"
        )
    return ScannIndex.open(folder, embeddings)
