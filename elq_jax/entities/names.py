"""Normalises titles and Wikidata ids, which people write in several ways."""

from __future__ import annotations

import re

import pyarrow as pa
import pyarrow.compute as pc

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
    titles = pc.replace_substring(pc.utf8_normalize(titles, form="NFC"), "_", " ")
    titles = pc.utf8_trim_whitespace(pc.replace_substring_regex(titles, r"[\s\p{Z}]+", " "))
    first, rest = pc.utf8_slice_codeunits(titles, 0, 1), pc.utf8_slice_codeunits(titles, 1)
    return pc.binary_join_element_wise(pc.utf8_upper(first), rest, "")


def normal_wikidata_id(text: str) -> str | None:
    """Returns the id in "Q42", "q42", "wd:Q42" or a Wikidata address; None if there is none.

    Addresses are such as https://www.wikidata.org/wiki/Q42 and http://www.wikidata.org/entity/Q42.
    """
    found = _WRITTEN_ID.fullmatch(text.strip())
    return found["id"].upper() if found else None
