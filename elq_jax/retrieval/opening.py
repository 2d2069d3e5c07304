"""Opens the index of a linker: a saved one, or exact search where none was saved."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence

import jax
import numpy as np

from elq_jax.core import devices as devices_lib
from elq_jax.entities.embeddings import Embeddings
from elq_jax.retrieval.base import INDEXES, Index, UnavailableError, is_saved, read_description
from elq_jax.retrieval.exact import ExactIndex
from elq_jax.retrieval.scann import ScannIndex  # noqa: F401  registers it
from elq_jax.retrieval.sharded import ShardedIndex
from elq_jax.retrieval.table import Table


def _is_shared(devices: Sequence[jax.Device]) -> bool:
    """Returns whether exact search divides the table: on several accelerators or hosts.

    The virtual devices of one CPU search the memory-mapped table faster than copies of its parts.
    """
    return len(devices_lib.local(devices)) < len(devices) or (
        len(devices) > 1 and devices[0].platform != "cpu"
    )


def exact_index(
    embeddings: Embeddings | np.ndarray,
    devices: Sequence[jax.Device],
    table: Table | None = None,
    products: str = "auto",
) -> Index:
    """Makes an exact index for the devices of a linker, of this process and perhaps of others.

    Args:
      embeddings: [E, D] entity vectors.
      devices: devices that search.
      table: table by `Table.place`, if the devices hold the embeddings already.
      products: type of products that may decide what is compared in float32, see `ExactIndex`.
    """
    if _is_shared(devices):
        return ShardedIndex(table or Table.place(embeddings, devices), devices)
    return ExactIndex(embeddings, products=products)


def open_index(
    folder: str | os.PathLike[str],
    embeddings: Embeddings | np.ndarray,
    index: str = "auto",
    devices: Sequence[jax.Device] | None = None,
    products: str = "auto",
) -> Index:
    """Opens the index of a linker directory.

    Args:
      folder: path of a saved index; need not exist for an index without files.
      embeddings: [E, D] entity vectors.
      index: name in `INDEXES`, such as "exact", "scann" or "my_module:my_index"; or "auto": the
        saved one if there is one that this machine can use, else exact.
      devices: devices that may search; all of this process by default.
      products: type of the products of exact search, see `exact_index`.

    Raises:
      ElqError: the name is unknown; no index is saved, it is damaged or of other embeddings.
    """
    devices = devices or devices_lib.local(devices_lib.all_devices())
    if index == "auto":
        saved = _saved_index(folder, embeddings)
        return saved or exact_index(embeddings, devices, products=products)
    if index == "exact":
        return exact_index(embeddings, devices, products=products)
    kind = INDEXES.get(index)
    if kind.has_files:
        return kind.open(folder, embeddings)
    return kind.build(embeddings, devices=devices)


def _saved_index(
    folder: str | os.PathLike[str], embeddings: Embeddings | np.ndarray
) -> Index | None:
    """Opens the saved index; None if there is none, or, with a warning, if it is unusable here."""
    if not is_saved(folder):
        return None
    name = read_description(folder).index
    if not INDEXES.is_known(name):  # A file does not decide which modules are imported.
        reason = f"{folder}: the index {name!r} is not part of elq_jax; --index {name} imports it"
    else:
        try:
            return INDEXES.get(name).open(folder, embeddings)
        except UnavailableError as error:
            reason = f"{folder}: {error}"
    warnings.warn(f"{reason}; searching exactly", stacklevel=5)
    return None
