"""Normalises titles, names in questions, and Wikidata ids, which people write in several ways."""

from __future__ import annotations

import re
import unicodedata

import pyarrow as pa
import pyarrow.compute as pc

QUALIFIED = r"^(.*\S)(?:\s+\([^()]+\)|\s*（[^（）]+）)$"
"""Regular expression, of `re` and of Arrow, for a title and the qualifier in parentheses behind it:
"Dune (novel)", "雷神（電影）"."""

WIKIDATA_ID = re.compile(r"Q[1-9]\d*", re.ASCII)

_WRITTEN_ID = re.compile(
    r"(?:<?(?:https?://)?(?:(?:www|m)\.)?wikidata\.org/(?:wiki|entity)/(?:Special:EntityPage/)?|wd:)?"
    r"(?P<id>Q[1-9]\d*)(?:[?#][^>]*)?>?",
    re.ASCII | re.IGNORECASE,
)


def normal_titles(titles: pa.Array) -> pa.Array:
    """Rewrites titles as Wikipedia writes them, so that two spellings of a title become equal.

    Unicode NFC, blanks for underscores, one blank where there are several, none at the ends, and a
    capital first letter: "gaius_Julius  Caesar" becomes "Gaius Julius Caesar". Any other
    difference in case counts.

    Args:
      titles: [n] strings or nulls.

    Returns:
      [n] rewritten titles, null where `titles` has null.
    """
    titles = pc.replace_substring(_composed(titles), "_", " ")
    titles = pc.utf8_trim_whitespace(pc.replace_substring_regex(titles, r"[\s\p{Z}]+", " "))
    first, rest = pc.utf8_slice_codeunits(titles, 0, 1), pc.utf8_slice_codeunits(titles, 1)
    return pc.binary_join_element_wise(pc.utf8_upper(first), rest, "")


def _composed(texts: pa.Array) -> pa.Array:
    """Returns texts in Unicode NFC. `pc.utf8_normalize` of pyarrow 25.0.1 returns NFD instead."""
    if pc.all(pc.string_is_ascii(texts)).as_py() is not False:
        return texts
    values = texts.to_pylist()
    return pa.array([text and unicodedata.normalize("NFC", text) for text in values], texts.type)


# Letters that Unicode does not decompose into a plain one and a mark.
_PLAIN_LETTERS = {
    **{"ß": "ss", "æ": "ae", "œ": "oe", "ø": "o", "đ": "d", "ð": "d", "þ": "th", "ł": "l"},
    **{"ħ": "h", "ı": "i", "ς": "σ"},
    # Persian letters, and one of Arabic, which keyboards mix up.
    **{"ی": "ي", "ى": "ي", "ک": "ك"},
}
# Accents of Latin, Greek and Cyrillic, points of Hebrew, vowels, hamzas and tatweel of Arabic.
_DIACRITICS = (
    r"[\x{300}-\x{36f}\x{591}-\x{5bd}\x{5bf}\x{5c1}\x{5c2}\x{5c4}\x{5c5}\x{5c7}"
    r"\x{610}-\x{61a}\x{640}\x{64b}-\x{65f}\x{670}\x{6d6}-\x{6dc}\x{6df}-\x{6e8}\x{6ea}-\x{6ed}]+"
)


def normal_names(names: pa.Array) -> pa.Array:
    """Rewrites names so that the ways in which people write a name become equal.

    In this order: Unicode NFKD, lower case, no diacritics (a few letters such as "ø" are replaced
    by plain ones; vowel signs such as those of Hindi stay), "and" for "&", a blank for everything
    but letters, digits, "+" and "#", and no leading "the", "a" or "an" if something follows it. A
    name of nothing but punctuation stays, in lower case. "The Beyoncé-Knowles" becomes "beyonce
    knowles", "C++" becomes "c++".

    Args:
      names: [n] strings without nulls.

    Returns:
      [n] strings of words with single blanks between them.
    """
    is_ascii = pc.all(pc.string_is_ascii(names), min_count=0).as_py()
    if not is_ascii:
        names = pc.utf8_normalize(names, form="NFKD")
    names = pc.utf8_lower(names)
    if not is_ascii:
        for letter, plain in _PLAIN_LETTERS.items():
            names = pc.replace_substring(names, letter, plain)
        names = pc.replace_substring_regex(names, _DIACRITICS, "")
    names = pc.replace_substring(names, "&", " and ")
    # The classes of Unicode take milliseconds to compile.
    letters = "a-z0-9" if is_ascii else r"\p{L}\p{N}\p{M}"
    words = pc.utf8_trim_whitespace(pc.replace_substring_regex(names, f"[^{letters}+#]+", " "))
    words = pc.if_else(pc.equal(words, ""), pc.utf8_trim_whitespace(names), words)
    return pc.replace_substring_regex(words, r"^(?:the|an?) (\S)", r"\1")


def normal_wikidata_id(text: str) -> str | None:
    """Returns the id in "Q42", "q42", "wd:Q42" or a Wikidata address; None if there is none.

    Addresses are such as https://www.wikidata.org/wiki/Q42 and http://www.wikidata.org/entity/Q42.
    """
    match = _WRITTEN_ID.fullmatch(text.strip())
    return match["id"].upper() if match else None
