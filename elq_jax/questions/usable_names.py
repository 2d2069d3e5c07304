"""Chooses names of entities that people may write, and that say which entity is meant."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

import numpy as np

from elq_jax.entities.catalogue import Catalogue
from elq_jax.entities.name_index import NameIndex

_MOST_WORDS = 6
_MOST_LETTERS = 60
_MOST_OWNERS = 32  # A name of more entities is the name of nobody.


class UsableNames:
    """Knows the names of some entities that say which entity is meant.

    Args:
      catalogue: catalogue of the entities.
      index: names of all its entities.
      rows: [n] rows of the entities whose names are asked for.
    """

    def __init__(self, catalogue: Catalogue, index: NameIndex, rows: np.ndarray):
        titles, aliases = catalogue.titles(rows), catalogue.aliases(rows)
        self._titles = {row: title for row, title in zip(rows.tolist(), titles, strict=True)}
        plain = [_without_qualifier(title) for title in titles]
        texts = [*plain, *(alias for own in aliases for alias in own)]
        named = index.find(texts, _MOST_OWNERS)
        owners: list[set[int]] = [set() for _ in texts]
        for text, row, count in zip(named.texts, named.rows.tolist(), named.counts, strict=True):
            owners[text].add(row)
            if count > _MOST_OWNERS:
                owners[text].add(-1)
        self._plain = dict(zip(rows.tolist(), zip(plain, owners, strict=False), strict=True))
        self._aliases, place = {}, len(plain)
        for row, own in zip(rows.tolist(), aliases, strict=True):
            known = zip(own, owners[place : place + len(own)], strict=True)
            self._aliases[row] = [a for a, others in known if others == {row} and _is_usable(a)]
            place += len(own)

    def choose(
        self,
        row: int,
        share_kind: Callable[[Iterable[int]], bool],
        prefers_alias: bool,
        rng: random.Random,
    ) -> str | None:
        """Chooses a name of an entity: an alias that nothing else has, or the title.

        The title without its qualifier will do if
          1. no other entity has the name; or
          2. the title has no qualifier: it is the entity that one thinks of first; or
          3. the question tells the kind, and no other entity of the kind has the name.

        Args:
          row: row of the entity.
          share_kind: function that returns whether one of other entities may be meant as well, by
            the kind that the question tells.
          prefers_alias: whether an alias is taken where there is one.
          rng: random choices.
        """
        aliases = self._aliases[row]
        if aliases and prefers_alias:
            return rng.choice(aliases)
        name, owners = self._plain[row]
        is_free = owners <= {row} or name == self._titles[row]
        if _is_usable(name) and (is_free or (-1 not in owners and not share_kind(owners - {row}))):
            return name.replace(",", "") if rng.random() < 0.5 else name
        return rng.choice(aliases) if aliases else None


def _without_qualifier(title: str) -> str:
    name, _, qualifier = title.rpartition(" (")
    return name if name and qualifier.endswith(")") else title


def _is_usable(name: str) -> bool:
    """Returns whether people may write a name in a question."""
    return (
        len(name) <= _MOST_LETTERS
        and not name.startswith("List of ")
        and len(name.split()) <= _MOST_WORDS
        and any(letter.isalpha() for letter in name)
        and not any(sign in name for sign in "()[]{}\n\t")
    )
