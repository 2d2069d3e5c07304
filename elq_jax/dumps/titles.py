"""Normalises the titles of links and pages as MediaWiki does."""

from __future__ import annotations

import dataclasses
import html
import re
import unicodedata
import urllib.parse
from typing import Literal

from elq_jax.dumps.siteinfo import CATEGORY, FILE, SiteInfo, folded

Kind = Literal["article", "file", "category", "other_namespace", "interwiki", "section", "bad"]

_MOST_BYTES = 255
_DIRECTION_MARKS = re.compile("[\u200e\u200f\u202a-\u202e]")
_SPACES = re.compile("[ _\u00a0\u1680\u180e\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+")
_ILLEGAL = re.compile(r"[\x00-\x1f\x7f#<>\[\]{}|\ufffd]|%[0-9A-Fa-f]{2}|&#?[A-Za-z0-9\x80-]+;|~~~")
_RELATIVE = re.compile(r"\.{1,2}(/.*)?|.*/\.{1,2}(/.*)?", re.DOTALL)
_PERCENT = re.compile("(?:%[0-9A-Fa-f]{2})+")
# Languages in which the capital of i keeps its dot.
_DOTTED_I = {"az", "kaa", "tr"}


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """What a link or a title leads to.

    Attributes:
      kind: kind of what it leads to; "section": a part of the page with the link; "bad": nothing,
        MediaWiki allows no such title.
      title: normalised title without its namespace and section.
      namespace: number of the namespace.
      is_shown: whether a link of it is text. Links to files, categories and other languages are
        not, unless they begin with a colon.
    """

    kind: Kind
    title: str = ""
    namespace: int = 0
    is_shown: bool = True


def parse_target(text: str, site: SiteInfo) -> Target:
    """Reads the target of a link, or a title.

        parse_target("thor_(film)#Plot", site)  # Target("article", "Thor (film)")

    Args:
      text: target as it stands in the wikitext, before the first "|".
      site: namespaces and letter case of the wiki.
    """
    text = html.unescape(text) if "&" in text else text
    if "%" in text:
        text = _PERCENT.sub(_decode_percent, text)
    text = unicodedata.normalize("NFC", _SPACES.sub(" ", _DIRECTION_MARKS.sub("", text))).strip()
    is_named = text.startswith(":")
    text = text.removeprefix(":").strip()
    kind: Kind = "article"
    number, language = 0, False
    prefix, colon, rest = text.partition(":")
    while colon and prefix.strip():
        name = folded(prefix)
        if name in site.namespaces:
            number, text = site.namespaces[name], rest.strip()
        elif name in site.interwiki:
            kind, language, text = "interwiki", site.interwiki[name], rest.strip()
            if name == site.prefix and not number:  # A link to this very wiki.
                kind, language, is_named = "article", False, True
                prefix, colon, rest = text.removeprefix(":").partition(":")
                continue
        break
    text, sharp, _ = text.partition("#")
    text = text.strip()
    if kind == "interwiki":
        return Target(kind, text, 0, is_named or not language)
    if number == FILE:
        kind = "file"
    elif number:
        kind = "category" if number == CATEGORY else "other_namespace"
    if not text:
        return Target("section" if sharp and not number else "bad")
    if not _is_legal(text):
        return Target("bad")
    is_shown = is_named or kind not in ("file", "category")
    return Target(kind, with_capital(text, number, site), number, is_shown)


def with_capital(title: str, namespace: int, site: SiteInfo) -> str:
    """Returns a title with a capital first letter, where its case does not count."""
    if namespace not in site.first_letter:
        return title
    first = title[0]
    if first == "i" and site.language in _DOTTED_I:
        return "İ" + title[1:]
    # MediaWiki leaves letters alone that become two (ß), and Georgian, whose capitals are not used.
    if len(first.upper()) != 1 or "\u10d0" <= first <= "\u10ff":
        return title
    return first.upper() + title[1:]


def _decode_percent(match: re.Match[str]) -> str:
    try:
        return urllib.parse.unquote_to_bytes(match[0]).decode("utf-8")
    except UnicodeDecodeError:
        return match[0]


def _is_legal(title: str) -> bool:
    if _ILLEGAL.search(title) or title.startswith(":") or _RELATIVE.fullmatch(title):
        return False
    return len(title.encode("utf-8", "replace")) <= _MOST_BYTES
