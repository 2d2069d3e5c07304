"""Corrects the spelling of questions with the words of a catalogue as the dictionary.

A word that the tokenizer has to cut into pieces, and that forms no name with its neighbours, may be
a slip. All words that one slip leads to it are compared with the word itself, in log-odds:

  of a word     how often it occurs in the catalogue, or for a word of the vocabulary is expected
                to; how often it stands beside its neighbours in a name; and whether fingers slip
                this way: a letter is left out, doubled, exchanged with the next one, or replaced by
                its neighbour on the keyboard
  of no slip    how often the word itself occurs in the catalogue, whether it has a capital letter
                inside of a sentence, as names have, and how short it is

The constants are the rounded weights of a conditional logit, fitted on the training questions of
WebQSP, SimpleQuestions and LC-QuAD with one typo each, and on their names as they are. Half of
those are of entities outside the catalogue, and must not become names that are inside.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from elq_jax.core.strings import made_whole
from elq_jax.entities.names import normal_names
from elq_jax.entities.word_index import (
    DROP,
    INSERT,
    REPLACE,
    SWAP,
    Spellings,
    WordIndex,
    counts_in,
    spelled,
    spellings,
    word_keys,
)
from elq_jax.questions.noise import NEIGHBOURS
from elq_jax.questions.words import FUNCTION_WORDS
from elq_jax.text.corrections import Correction
from elq_jax.text.tokenization import Tokenizer

_SURE = 0.9  # probability that a correction needs
_COUNT, _PAIR, _APART, _UNUSUAL = 2.2, 2.7, -2.0, -5.0  # of a word, the first two by log10(1 + n)
_NO_SLIP, _KNOWN, _CAPITAL, _LETTER = 2.3, 4.0, 2.5, -0.3  # of the word as it is written
_WORDS_OF_COUNTS = 1e7  # counts are those among so many words
_SHORT, _LONG = 3, 32  # letters; a word of _SHORT letters must form a name after correction

_WORD = re.compile(r"[\w\u0300-\u036f]+")
_JOINT = re.compile(r"[\s\-.'’]*")  # between words that may be neighbours in a name
_CONTRACTIONS = re.compile(  # written without their apostrophe
    "(i|you|he|she|it|we|they|that|there|who|what|where|when|why|how)(re|ve|ll|d|m)"
    "|(do|does|did|is|are|was|were|has|have|had|ca|wo|could|would|should|must|need|ai|might)nt"
)


class _Word(NamedTuple):
    """A word of a text that may be misspelt.

    Attributes:
      text: number of the text.
      start, end: half-open character offsets.
      normal: the word as `normal_names` writes it.
      before, after: neighbours in the same form, or "".
      is_capital: whether it has a capital letter where other words have none.
    """

    text: int
    start: int
    end: int
    normal: str
    before: str
    after: str
    is_capital: bool

    @property
    def pairs(self) -> tuple[str, str]:
        """Returns the word with its neighbours."""
        return f"{self.before} {self.normal}", f"{self.normal} {self.after}"


class Speller:
    """Finds the words of questions that are misspelt.

    Args:
      words: words of the catalogue.
      tokenizer: tokenizer of the questions; its whole words are taken as right.
    """

    def __init__(self, words: WordIndex, tokenizer: Tokenizer):
        self.words, self._tokenizer = words, tokenizer

    @functools.cached_property
    def _vocabulary(self) -> dict[str, float]:
        """Maps whole words of the vocabulary to how often they are expected.

        The vocabularies of BERT are sorted by frequency, which falls as Zipf's law says.
        """
        expected: dict[str, float] = {}
        for rank, word in enumerate(self._tokenizer.whole_words()):
            expected.setdefault(_normal(word), 0.06 * _WORDS_OF_COUNTS / (rank + 3))
        return expected

    @functools.cached_property
    def _expected(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns hashes, ascending, and expected counts of the words of the vocabulary."""
        keys, counts = word_keys([*self._vocabulary]), np.array([*self._vocabulary.values()])
        order = np.argsort(keys)
        return keys[order], counts[order]

    def __call__(self, texts: Sequence[str]) -> list[tuple[Correction, ...]]:
        """Returns the corrections of each text, in its order."""
        corrections: list[list[Correction]] = [[] for _ in texts]
        unknown = [word for pair in enumerate(texts) for word in self._unknown(*pair)]
        keys = word_keys([key for word in unknown for key in (word.normal, *word.pairs)])
        counts = self.words.counts(keys).reshape(-1, 3)
        for word, (count, *pairs) in zip(unknown, counts.tolist(), strict=True):
            better = None if any(pairs) else self._better(word, count)
            if better is not None:
                written = texts[word.text][word.start : word.end]
                place = (word.start, word.end, _in_case_of(written, better))
                corrections[word.text].append(Correction(*place))
        return [tuple(own) for own in corrections]

    def _unknown(self, number: int, text: str) -> Iterable[_Word]:
        """Yields the words of a text that are no words of the vocabulary, with their neighbours."""
        known = self._vocabulary
        places = [(m.start(), m.end()) for m in _WORD.finditer(text)]
        if all(end - start < _SHORT or text[start:end].lower() in known for start, end in places):
            return
        shouts = text.isupper()
        for place, (start, end) in enumerate(places):
            written = text[start:end]
            normal = _normal(written)
            if not self._may_be_slip(normal) or (written.isupper() and not shouts):
                continue
            before = after = ""
            if place and _JOINT.fullmatch(text, places[place - 1][1], start):
                before = _normal(text[slice(*places[place - 1])])
            if place + 1 < len(places) and _JOINT.fullmatch(text, end, places[place + 1][0]):
                after = _normal(text[slice(*places[place + 1])])
            is_capital = written[0].isupper() and place > 0 and not shouts
            yield _Word(number, start, end, normal, before, after, is_capital)

    def _may_be_slip(self, normal: str) -> bool:
        known = self._vocabulary
        return (
            _SHORT <= len(normal) <= _LONG
            and normal not in known
            and not _CONTRACTIONS.fullmatch(normal)
            and not (normal[-1] == "s" and normal[-2] != "s" and normal[:-1] in known)
            and set(normal) <= set(self.words.alphabet)
        )

    def _better(self, word: _Word, count: int) -> str | None:
        """Returns the word that was probably meant; None: the one that is written.

        Args:
          word: word that forms no name with its neighbours.
          count: how often it occurs in the catalogue.
        """
        alphabet = self.words.alphabet
        ways = spellings(word.normal, alphabet)
        expected = np.maximum(
            self.words.counts(ways.keys) * self._scale, counts_in(ways.keys, *self._expected)
        )
        hits = np.flatnonzero(expected)
        usual = _are_usual(word.normal, alphabet, Spellings(*(part[hits] for part in ways)))
        meant: dict[str, tuple[float, bool]] = {}
        columns = (ways.edits[hits], ways.places[hits], ways.letters[hits], expected[hits], usual)
        for edit, place, letter, n, is_usual in zip(*(c.tolist() for c in columns), strict=True):
            spelling = spelled(word.normal, edit, place, alphabet[letter])
            _, was_usual = meant.get(spelling, (n, False))
            meant[spelling] = (n, is_usual or was_usual)
        meant.pop(word.normal, None)  # It is one of its own spellings.
        return self._most_probable(word, count, meant) if meant else None

    def _most_probable(
        self, word: _Word, count: int, meant: dict[str, tuple[float, bool]]
    ) -> str | None:
        """Chooses among the words that may be meant, see the head of this module.

        Args:
          word: word that is written.
          count: how often it occurs in the catalogue.
          meant: how often other words occur, and whether fingers slip from them to this one.
        """
        pairs = [pair for other in meant for pair in word._replace(normal=other).pairs]
        beside = self.words.counts(word_keys(pairs)).reshape(-1, 2) * self._scale
        has_content = np.array(
            [len(w) > 1 and w not in FUNCTION_WORDS for w in (word.before, word.after)]
        )
        n, is_usual = np.array([*meant.values()], np.float64).T
        scores = (
            _COUNT * np.log10(1 + n)
            + _PAIR * np.log10(1 + beside).sum(axis=1)
            + _APART * ((beside == 0) & has_content).sum(axis=1)
            + _UNUSUAL * (1 - is_usual)
        )
        no_slip = _NO_SLIP + _KNOWN * np.log10(1 + count * self._scale)
        no_slip += _CAPITAL * word.is_capital + _LETTER * min(len(word.normal), 12)
        best = int(scores.argmax())
        if len(word.normal) == _SHORT and not (beside[best] * has_content).any():
            return None
        log_total = np.logaddexp.reduce([*scores, no_slip])
        return [*meant][best] if scores[best] - log_total > np.log(_SURE) else None

    @functools.cached_property
    def _scale(self) -> float:
        """Returns the factor that makes counts those of a catalogue of `_WORDS_OF_COUNTS` words."""
        return min(1.0, _WORDS_OF_COUNTS / max(self.words.total, 1))


def _are_usual(word: str, alphabet: str, ways: Spellings) -> np.ndarray:
    """Returns whether fingers often slip from each spelling to a word, [v] bool."""
    letters = np.array([*word, "", ""])
    i, new = ways.places, np.array([*alphabet, ""])[ways.letters]
    at, left, right = letters[np.minimum(i, len(word))], letters[i - 1], letters[i + 1]
    is_near = [b in NEIGHBOURS.get(a, "") for a, b in zip(at.tolist(), new.tolist(), strict=True)]
    # Another form of a word is no slip: "billet", "billets"; "concedes", "conceded".
    is_form = (ways.edits == INSERT) & (i == len(word))
    is_form |= (ways.edits == REPLACE) & (i == len(word) - 1) & np.isin(at, ("s", "d"))
    is_form &= np.isin(new, ("s", "d"))
    return ~is_form & (
        ((ways.edits == DROP) & ((at == left) | (at == right)))
        | (ways.edits == SWAP)
        | ((ways.edits == REPLACE) & np.array(is_near, bool))
        | (ways.edits == INSERT)
    )


def _normal(word: str) -> str:
    return word.lower() if word.isascii() else _normal_of_others(word)


@functools.lru_cache(1 << 12)
def _normal_of_others(word: str) -> str:
    return normal_names(pa.array([made_whole(word)]))[0].as_py()


def _in_case_of(written: str, word: str) -> str:
    """Writes a word in capital or small letters as another is written."""
    if written.isupper() and len(written) > 1:
        return word.upper()
    return word.capitalize() if written[0].isupper() else word
