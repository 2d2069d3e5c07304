"""Searches entity embeddings; `search(queries, k)` is the same for every index."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from elq_jax.retrieval.base import INDEXES, Index
    from elq_jax.retrieval.opening import exact_index, open_index

__all__ = ["INDEXES", "Index", "exact_index", "open_index"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from elq_jax.retrieval import opening  # Not before it is asked for: it imports JAX.

    return getattr(opening, name)
