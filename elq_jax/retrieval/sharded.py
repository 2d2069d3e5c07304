"""Exact search over a table that is spread over the devices of one or several hosts."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from elq_jax.core import devices as devices_lib
from elq_jax.entities.embeddings import Embeddings
from elq_jax.retrieval.base import INDEXES, Index, NoSettings
from elq_jax.retrieval.exact import Table, query_batches, shard_table, sharded_top_k


def place_table(
    embeddings: Embeddings | np.ndarray, devices: Sequence[jax.Device], dtype: str | None = None
) -> Table:
    """Spreads embeddings over devices; a process reads the rows of its own devices only.

    Args:
      embeddings: [E, D].
      devices: P of this process and perhaps others.
      dtype: "float32", "bfloat16" or "int8" on the devices; None: as stored.

    Returns:
      a table whose arrays have a leading axis of this process's devices, for a function made by
      `devices.parallel`.

    Raises:
      ElqError: not a table, or a row with NaN or infinity.
    """
    own = devices_lib.local(devices)
    wanted = [i for i, device in enumerate(devices) if device in own]
    values, scale = shard_table(embeddings, len(devices), dtype, wanted)
    scale = None if scale is None else devices_lib.place(scale, own)
    return Table(devices_lib.place(values, own), scale, len(embeddings))


@INDEXES.register("sharded")
class ShardedIndex(Index):
    """Exact search by all devices together; approximate in each of them on TPU (`sharded_top_k`).

    With devices of several processes, every process has to search for the same queries.

    Args:
      table: of `place_table`.
      devices: the same.
    """

    has_files = False

    def __init__(self, table: Table, devices: Sequence[jax.Device]):
        super().__init__(table)
        self._table, self._devices = table, list(devices)

        def search(queries, table, k):
            return sharded_top_k(
                queries,
                table.values,
                k,
                table.num_rows,
                devices_lib.AXIS,
                table.scale,
                recall_target=0.99,
            )

        self._search = devices_lib.parallel(search, self._devices, static=2)

    @classmethod
    def build(
        cls,
        embeddings: Embeddings | np.ndarray,
        settings: NoSettings | None = None,
        *,
        devices: Sequence[jax.Device] | None = None,
    ) -> ShardedIndex:
        """Spreads the embeddings over the devices, by default all of every process."""
        del settings
        devices = devices or devices_lib.all_devices()
        return cls(place_table(embeddings, devices), devices)

    def nearest(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """As `ExactIndex.nearest`."""
        scores = np.empty((len(queries), k), np.float32)
        rows = np.empty((len(queries), k), np.int32)
        for part, padded in query_batches(queries):
            parts = devices_lib.split({"queries": padded}, self._devices)
            found = self._search(parts["queries"], self._table, k)
            count = part.stop - part.start
            scores[part], rows[part] = devices_lib.merge(found, self._devices, count)
        return scores, rows
