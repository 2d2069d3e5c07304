"""Follows redirects to their end."""

from __future__ import annotations

from collections.abc import Mapping


def resolve(targets: Mapping[str, str]) -> dict[str, str | None]:
    """Returns the end of every chain of redirects by the title that it begins with.

        resolve({"a": "b", "b": "c", "d": "d"})  # {"a": "c", "b": "c", "d": None}

    Each redirect is visited once, however long the chains are. A chain that comes back to itself
    has no end.

    Args:
      targets: targets of redirects by their titles.
    """
    ends: dict[str, str | None] = {}
    for start in targets:
        chain, title = [], start
        on_chain = set()
        while title in targets and title not in ends and title not in on_chain:
            chain.append(title)
            on_chain.add(title)
            title = targets[title]
        end = None if title in on_chain else ends.get(title, title)
        ends.update(dict.fromkeys(chain, end))
    return ends
