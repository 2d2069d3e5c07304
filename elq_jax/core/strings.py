"""Finds strings that no UTF-8 file can hold: half a surrogate pair, from JSON "\\ud83d"."""

from __future__ import annotations

import re

from elq_jax.core.errors import ElqError

_SURROGATE = re.compile("[\ud800-\udfff]")


def is_whole(text: str) -> bool:
    """Returns whether a string can be written as UTF-8: it has no half of a surrogate pair."""
    return text.isascii() or not _SURROGATE.search(text)


def check_whole(name: str, *texts: str) -> None:
    """Raises an ElqError that names `name` unless every string can be written as UTF-8."""
    if not all(map(is_whole, texts)):
        raise ElqError(
            f"{name}: half of a surrogate pair (\\ud800 to \\udfff), which is no text; remove it"
        )


def made_whole(text: str) -> str:
    """Returns the string with every half of a surrogate pair replaced by U+FFFD."""
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)
