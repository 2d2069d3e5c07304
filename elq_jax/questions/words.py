"""Lists English words that are no names, and finds the words of a text in any language."""

from __future__ import annotations

import re

from elq_jax.text.scripts import MARKS, UNSPACED

# A word begins and ends with a letter or digit: "o'brien," is "o'brien", "(at&t)" is "at&t". In
# scripts that are written without blanks, each letter is a word.
WORD = re.compile(rf"[{UNSPACED}][{MARKS}]*|\w[^\s{UNSPACED}]*(?<=[\w{MARKS}])")

ARTICLES = frozenset({"the", "a", "an"})

_WORDS = """
about after against all also and any are as at be because been before being between
both but by can could did do does doing done down during each few for from further
had has have having he her here hers him his how i if in into is isn't it it's its
let let's many me more most much my no nor not now of off on once one only or other
our out over own same she should so some such than that that's their them then there
there's these they this those through to too under until up us very was we were what
what's when when's where where's which while who who's whom whose why will with
would you your yours
"""
FUNCTION_WORDS = ARTICLES.union(_WORDS.split())
"""Words that say nothing of what a question is about, in lower case."""
