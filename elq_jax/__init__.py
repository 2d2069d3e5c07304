"""One-pass entity linking for questions in JAX.

from elq_jax import EntityLinker

linker = EntityLinker.from_pretrained("my_linker")
linker("who wrote dune?")
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
__all__ = ["Candidate", "ElqError", "EntityLinker", "Link", "LinkingSettings"]


def __getattr__(name: str) -> Any:
    # Imported when used, so that `python -m elq_jax.<program> --help` does not wait for JAX.
    if name == "ElqError":
        from elq_jax.core.errors import ElqError

        return ElqError
    if name in __all__:
        from elq_jax.linking import linker, links, settings

        modules = {"EntityLinker": linker, "LinkingSettings": settings}
        return getattr(modules.get(name, links), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
