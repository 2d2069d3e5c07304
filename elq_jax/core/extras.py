"""Finds packages that come with an optional extra of this library."""

from __future__ import annotations

import importlib.util

from elq_jax.core.errors import ElqError


def require(extra: str, *packages: str) -> None:
    """Raises an ElqError that says what to install where a package of an extra is missing.

    Args:
      extra: name of the extra, such as "serve".
      *packages: names by which the packages are imported.
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ElqError(
            f"{', '.join(missing)}: not installed; they come with pip install 'elq_jax[{extra}]'"
        )
