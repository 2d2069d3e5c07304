"""Entity embeddings and search over them: `search(queries, k)` is the same for every index."""

from __future__ import annotations

import os
from typing import Protocol

import numpy as np

from elq_jax.errors import ElqError
from elq_jax.retrieval.embeddings import Embeddings
from elq_jax.retrieval.exact import ExactIndex
from elq_jax.retrieval.scann import ScannIndex, is_saved

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


def open_index(
    folder: str | os.PathLike[str], embeddings: Embeddings | np.ndarray, kind: str = "auto"
) -> Index:
    """Opens an index.

    Args:
      folder: where `build_index` saved one; need not exist for exact search.
      embeddings: [E, D].
      kind: "exact" (over the embeddings; needs nothing saved), "scann" (the saved one), or "auto":
        the saved one if there is one, else exact.

    Raises:
      ElqError: unknown kind, no index saved, damaged, or built over other embeddings.
    """
    if kind not in INDEX_KINDS:
        raise ElqError(f"index {kind!r}: expected one of {', '.join(INDEX_KINDS)}")
    if kind == "exact" or (kind == "auto" and not is_saved(folder)):
        return ExactIndex(embeddings)
    if not is_saved(folder):
        source = embeddings.folder if isinstance(embeddings, Embeddings) else "EMBEDDINGS"
        raise ElqError(
            f"{folder}: no ScaNN index here; build one: python -m elq_jax.build_index "
            f"--kind scann --embeddings {source} --output {folder}"
        )
    return ScannIndex.open(folder, embeddings)
