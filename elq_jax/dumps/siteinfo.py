"""Reads what a wiki says of itself: its namespaces and their aliases, letter case, link trail."""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

from elq_jax.core.errors import DataError

FILE, CATEGORY, TEMPLATE = 6, 14, 10
# What every MediaWiki understands besides its own names, in the form of a siteinfo file, and the
# prefixes of Wikimedia's wikis.
_EVERY_WIKI = pathlib.Path(__file__).with_name("mediawiki.json")


@dataclasses.dataclass(frozen=True)
class SiteInfo:
    """What is needed of a wiki to read its titles.

    Attributes:
      database: name of the wiki, such as "enwiki".
      language: code of its language, such as "en".
      base: address of its main page.
      namespaces: numbers of namespaces by their names and aliases, as `folded` writes them.
      first_letter: numbers of the namespaces in which the first letter's case does not count.
      interwiki: whether a prefix leads to another language of the same project, by the prefix.
      link_trail: regular expression of letters that belong to a link when they follow it.
    """

    database: str
    language: str
    base: str
    namespaces: Mapping[str, int]
    first_letter: frozenset[int]
    interwiki: Mapping[str, bool]
    link_trail: str

    @property
    def prefix(self) -> str:
        """Returns the interwiki prefix that leads to this wiki itself.

        It is not always the language: the database "simplewiki" is in English, its prefix "simple".
        """
        own = self.database.removesuffix("wiki")
        return self.language if own == self.database else own.replace("_", "-")

    def name(self, number: int) -> str:
        """Returns a name of a namespace, for reports."""
        return next((name for name, n in self.namespaces.items() if n == number), str(number))


def folded(name: str) -> str:
    """Returns the name of a namespace or prefix in the form in which names are compared."""
    return re.sub(r"[_\s]+", " ", name).strip().lower()


def read_siteinfo(
    head: bytes, name: str | os.PathLike[str], path: str | os.PathLike[str] | None = None
) -> SiteInfo:
    """Reads the siteinfo of a dump.

    The XML has no aliases of namespaces, no interwiki prefixes and no link trail. A file
    `siteinfo-namespaces.json.gz`, which is published beside the dump, has the aliases and the link
    trail; an answer of the wiki's API may have the prefixes too. What is missing is that of every
    MediaWiki, and the prefixes of Wikimedia's wikis.

    Args:
      head: beginning of the dump, with its element `siteinfo`.
      name: name of the dump, for messages.
      path: path of a siteinfo file, the JSON answer of a wiki's API to meta=siteinfo.

    Raises:
      DataError: there is no siteinfo, or it cannot be read.
    """
    match = re.search(rb"<siteinfo>.*?</siteinfo>", head, re.DOTALL)
    if not match:
        message = "found no <siteinfo>, expected a dump of pages as MediaWiki exports it"
        raise DataError(f"{message}; download pages-articles again", name)
    try:
        root = ElementTree.fromstring(match[0])
    except ElementTree.ParseError as error:
        raise DataError(f"<siteinfo> is not XML ({error}); download the dump again", name) from None
    language = re.search(rb'<mediawiki[^>]* xml:lang="([^"]*)"', head)
    own = root.findall("namespaces/namespace")
    default = root.findtext("case") or "first-letter"
    namespaces = {folded(space.text or ""): int(space.get("key", "")) for space in own}
    cases = {int(space.get("key", "")): space.get("case") or default for space in own}
    queries = [_read_query(file) for file in (_EVERY_WIKI, path) if file is not None]
    general: dict[str, Any] = {}
    for query in queries:
        general |= query.get("general") or {}
    for number, alias in (pair for query in reversed(queries) for pair in _aliases(query)):
        namespaces.setdefault(folded(alias), number)
    return SiteInfo(
        database=root.findtext("dbname") or "",
        language=language[1].decode() if language else general.get("lang", ""),
        base=root.findtext("base") or "",
        namespaces=namespaces,
        first_letter=frozenset(n for n in {*cases, 0} if cases.get(n, default) == "first-letter"),
        interwiki=_interwiki(queries),
        link_trail=link_trail(general["linktrail"]),
    )


def _interwiki(queries: Sequence[Mapping[str, Any]]) -> dict[str, bool]:
    """Returns the prefixes of the wiki's own siteinfo, or else those of Wikimedia's wikis."""
    for query in queries[1:]:
        if entries := query.get("interwikimap"):
            return {entry["prefix"].lower(): "language" in entry for entry in entries}
    languages, others = (
        " ".join(queries[0][name]).split() for name in ("languages", "other wikis")
    )
    return dict.fromkeys(others, False) | dict.fromkeys(languages, True)


def _aliases(query: Mapping[str, Any]) -> Iterable[tuple[int, str]]:
    """Yields (number, name) of namespaces in both versions of the API's form."""
    for space in (query.get("namespaces") or {}).values():
        names = (space.get("name"), space.get("*"), space.get("canonical"))
        yield from ((int(space["id"]), name) for name in names if name)
    for space in query.get("namespacealiases") or ():
        yield int(space["id"]), space.get("alias") or space.get("*") or ""


def _read_query(path: str | os.PathLike[str]) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            data = file.read()
        value = json.loads(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)
        return dict(value.get("query", value))
    except (ValueError, EOFError, AttributeError, TypeError) as error:
        message = f"not a siteinfo file ({error}), expected the JSON of the API's meta=siteinfo"
        raise DataError(f"{message}; download siteinfo-namespaces.json.gz again", path) from None


def link_trail(pattern: str) -> str:
    r"""Returns the regular expression of a link trail as MediaWiki writes it in PHP's form.

    link_trail("/^([a-z]+)(.*)$/sD")  # "[a-z]+"
    """
    match = re.match(r"/\^\((.*)\)\(\.\*\)\$/", pattern)
    trail = match[1] if match else ""
    if r"\p{L}" in trail:  # any letter, which `re` writes otherwise
        return r"[^\W\d_]+"
    trail = re.sub(r"\\x\{([0-9A-Fa-f]+)\}", lambda code: chr(int(code[1], 16)), trail)
    try:
        re.compile(trail)
    except re.error:
        return "[a-z]+"
    return trail
