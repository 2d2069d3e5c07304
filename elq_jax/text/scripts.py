"""Says which characters form words, in any script.

The module `re` knows neither the marks that belong to a letter ("\\w" does not match the vowels of
"हिन्दी") nor the scripts that are written without blanks. The constants are the contents of sets, as
in f"[{MARKS}]".
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable


def _set_of(blocks: Iterable[tuple[int, int]], categories: str) -> str:
    """Returns the characters of blocks, first and last code point, that are of some categories."""
    codes = (code for first, last in blocks for code in range(first, last + 1))
    return "".join(chr(code) for code in codes if unicodedata.category(chr(code))[0] in categories)


# All blocks with marks on letters: neither variation selectors nor marks around symbols.
MARKS = _set_of(
    [(0x300, 0x1DFF), (0x2CE0, 0x309F), (0xA660, 0xABFF), (0xFE20, 0xFE2F), (0x10A00, 0x11FFF)],
    "M",
)
"""Accents, points and vowel signs, which belong to the letter before them."""

_JAPANESE = [(0x3005, 0x3007), (0x3041, 0x312F), (0x31F0, 0x31FF), (0xFF66, 0xFF9F)]
_SOUTH_EAST_ASIAN = [
    *[(0x0E00, 0x0EFF), (0x1000, 0x109F), (0xA9E0, 0xA9FE), (0xAA60, 0xAA7F)],  # Thai to Burmese
    *[(0x1780, 0x17E9), (0x1950, 0x19DF), (0x1A20, 0x1AAD), (0x1B00, 0x1B7F), (0xA980, 0xA9DF)],
]
UNSPACED = (
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"  # Chinese characters
    + _set_of([*_JAPANESE, *_SOUTH_EAST_ASIAN], "LMN")
)
"""Letters, marks and digits of scripts that are written without blanks between words: Chinese,
Japanese, Thai, Lao, Khmer, Burmese and their relatives, but not Korean."""

# Between two letters of such a script, or such a letter and another, a word may end.
BETWEEN_WORDS = rf"(?![{MARKS}])(?:(?=[{UNSPACED}])|(?<=[{UNSPACED}]))"
