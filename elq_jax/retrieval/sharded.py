"""Exact search over a table that is spread over the devices of one or several hosts."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from elq_jax.core import devices as devices_lib
from elq_jax.entities.embeddings import Embeddings
from elq_jax.retrieval.base import INDEXES, Index, NoSettings
from elq_jax.retrieval.exact import in_batches
from elq_jax.retrieval.table import Table


@INDEXES.register("sharded")
class ShardedIndex(Index):
    """Exact search on all devices together; on TPU, approximate within each (`Table.nearest`).

    With devices of several processes, every process has to search for the same queries.

    Args:
      table: table by `Table.place`.
      devices: devices that hold the table.
    """

    has_files = False
    is_compiled = True

    def __init__(self, table: Table, devices: Sequence[jax.Device]):
        super().__init__(table)
        self._table, self._devices = table, list(devices)

        def search(queries: jax.Array, table: Table, k: int) -> tuple[jax.Array, jax.Array]:
            return table.nearest(queries, k, recall_target=0.99)

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
        return cls(Table.place(embeddings, devices), devices)

    def nearest(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Finds the k best rows, equal scores in the order of rows, as `ExactIndex` does."""

        def nearest(padded: np.ndarray) -> list[np.ndarray]:
            parts = devices_lib.split({"queries": padded}, self._devices)
            best = self._search(parts["queries"], self._table, k)
            return devices_lib.merge(best, self._devices)

        return in_batches(nearest, queries, k)
