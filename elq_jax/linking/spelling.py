"""Corrects the spelling of questions with the words of a catalogue as the dictionary.

A word that the tokenizer has to cut into pieces, and that forms no name with its neighbours, may be
a slip. All words that one slip leads to it are compared with the word itself, in log-odds:

  of a word     how often it occurs in the catalogue, or for a word of the vocabulary is expected
                to; whether it stands beside one of its neighbours in a name; and whether fingers
                slip this way: a letter is left out, doubled, exchanged with the next one, or
                replaced by its neighbour on the keyboard
  of no slip    how often the word itself occurs in the catalogue, whether it has a capital letter
                inside of a sentence, as names have, how short it is, and how few words the
                catalogue has: a small one does not know most names

Scripts that are written without blanks between words are left alone. So is a word with diacritics,
if the encoder reads them, since corrections have none.

A word of three letters, or one that is in a name of the catalogue already, is corrected only if it
then forms a name with a neighbour. The constants come from a conditional logit, which was fitted on
the training questions of WebQSP, SimpleQuestions and LC-QuAD with one typo each, and on names as
they are; half of these are outside the catalogue, and must not become names that are inside. They
were then made stricter by hand, for the sake of such names.
"""

from __future__ import annotations

import copy
import functools
import math
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from elq_jax.core.strings import made_whole
from elq_jax.entities.names import normal_names
from elq_jax.entities.spellings import DROP, INSERT, REPLACE, SWAP, spelled, spellings
from elq_jax.entities.word_index import NAME_WEIGHT, Counts, WordIndex, word_keys
from elq_jax.questions.noise import NEIGHBOURS
from elq_jax.questions.words import FUNCTION_WORDS
from elq_jax.text.corrections import Correction, glued_symbols
from elq_jax.text.scripts import MARKS, UNSPACED
from elq_jax.text.tokenization import Tokenizer

_SURE = 0.9  # probability that a correction needs
# Of a word: for log10(1 + count); if it forms a name with a neighbour, or else for each neighbour
# that could be a part of its name; if fingers do not slip this way.
_COUNT, _NAME, _APART, _UNUSUAL = 2.2, 2.5, -2.2, -5.0
# Of no slip: always; for log10(1 + count); for a capital; for each of the first 12 letters; for
# each power of 10 that the catalogue has fewer words than those that counts refer to.
_NO_SLIP, _KNOWN, _CAPITAL, _LETTER, _SMALLER = 2.3, 4.0, 2.5, -0.3, 0.6
_WORDS_OF_COUNTS = 1e7
_SHORT, _LONG = 3, 32  # letters

_WORD = re.compile(rf"(?:[^\W{UNSPACED}]+[{MARKS}]*)+")
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


class _Meant(NamedTuple):
    """A word that may be meant by a word of a text.

    Attributes:
      word: number of the word of a text.
      spelling: word that may be meant.
      n: how often it occurs, or is expected to.
      is_usual: whether fingers often slip from it to the word.
    """

    word: int
    spelling: str
    n: float
    is_usual: bool


class Speller:
    """Finds the words of questions that are misspelt.

    Args:
      words: words of the catalogue.
      tokenizer: tokenizer of the questions; its whole words are taken as right.
    """

    def __init__(self, words: WordIndex, tokenizer: Tokenizer):
        self.words, self._tokenizer = words, tokenizer

    def with_words(self, words: WordIndex) -> Speller:
        """Returns the speller with the words of a catalogue that some entities were added to."""
        other = copy.copy(self)
        other.words = words
        return other

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
    def _expected(self) -> Counts:
        """Returns the expected counts of the words of the vocabulary."""
        keys, counts = word_keys([*self._vocabulary]), np.array([*self._vocabulary.values()])
        order = np.argsort(keys)
        return Counts.of(keys[order], counts[order])

    def __call__(self, texts: Sequence[str]) -> list[tuple[Correction, ...]]:
        """Returns the corrections of each text, in its order; glued symbols are left out."""
        corrections = [[*glued_symbols(text)] for text in texts]
        words = [word for pair in enumerate(texts) for word in self._unknown(*pair)]
        keys = word_keys([key for word in words for key in (word.normal, *word.pairs)])
        counts = self.words.counts(keys).reshape(-1, 3)
        is_name = counts[:, 1:].any(axis=1)
        words = [word for word, known in zip(words, is_name.tolist(), strict=True) if not known]
        for word, better in zip(words, self._better(words, counts[~is_name, 0]), strict=True):
            if better is not None:
                written = texts[word.text][word.start : word.end]
                place = (word.start, word.end, _in_case_of(written, better))
                corrections[word.text].append(Correction(*place))
        return [tuple(sorted(own)) for own in corrections]

    def _unknown(self, number: int, text: str) -> Iterable[_Word]:
        """Yields the words of a text that are no words of the vocabulary, with their neighbours."""
        if all(len(w) < _SHORT or self._is_usual(w.lower()) for w in _WORD.findall(text)):
            return
        places = [match.span() for match in _WORD.finditer(text)]
        shouts = text.isupper()
        for place, (start, end) in enumerate(places):
            written = text[start:end]
            normal = _normal(written)
            if not self._may_be_slip(normal) or (written.isupper() and not shouts):
                continue
            if not self._is_read_as(written, normal):
                continue
            before = after = ""
            if place and _JOINT.fullmatch(text, places[place - 1][1], start):
                before = _normal(text[slice(*places[place - 1])])
            if place + 1 < len(places) and _JOINT.fullmatch(text, end, places[place + 1][0]):
                after = _normal(text[slice(*places[place + 1])])
            is_capital = written[0].isupper() and place > 0 and not shouts
            yield _Word(number, start, end, normal, before, after, is_capital)

    def _is_usual(self, word: str) -> bool:
        """Returns whether the vocabulary has a word in lower case; lists it only if need be."""
        is_listed = word.isascii() and self._tokenizer.is_whole_word(word)
        return is_listed or word in self._vocabulary

    def _is_read_as(self, written: str, normal: str) -> bool:
        """Returns whether the encoder reads a word without its diacritics alike.

        Otherwise a correction, which has none, would lose them.
        """
        if written.isascii():
            return True
        texts = [made_whole(written), _in_case_of(written, normal)]
        ids, normal_ids = (e.ids for e in self._tokenizer.encode_questions(texts, None))
        return np.array_equal(ids, normal_ids)

    def _may_be_slip(self, normal: str) -> bool:
        known = self._vocabulary
        return (
            _SHORT <= len(normal) <= _LONG
            and normal not in known
            and not _CONTRACTIONS.fullmatch(normal)
            and not (normal[-1] == "s" and normal[-2] != "s" and normal[:-1] in known)
            and set(normal) <= set(self.words.alphabet)
        )

    def _better(self, words: Sequence[_Word], counts: np.ndarray) -> list[str | None]:
        """Returns the words that were probably meant; None: those that are written.

        Args:
          words: w words that form no names with their neighbours.
          counts: [w] int64, how often they occur in the catalogue.
        """
        better: list[str | None] = [None] * len(words)
        meant = self._meant(words)
        if not meant:
            return better
        pairs = [pair for m in meant for pair in words[m.word]._replace(normal=m.spelling).pairs]
        has_content = np.array(
            [[len(w) > 1 and w not in FUNCTION_WORDS for w in (x.before, x.after)] for x in words]
        )
        owners, n = np.array([m.word for m in meant]), np.array([m.n for m in meant])
        is_usual = np.array([m.is_usual for m in meant])
        is_pair = self.words.counts(word_keys(pairs)).reshape(-1, 2) > 0
        is_name = (is_pair & has_content[owners]).any(axis=1)
        scores = (
            _COUNT * np.log10(1 + n)
            + np.where(is_name, _NAME, _APART * has_content[owners].sum(axis=1))
            + _UNUSUAL * ~is_usual
        )
        capitals = np.array([word.is_capital for word in words])
        lengths = np.array([min(len(word.normal), 12) for word in words])
        total = self._no_slip + _KNOWN * np.log10(1 + counts * self._scale)
        total += _CAPITAL * capitals + _LETTER * lengths
        np.logaddexp.at(total, owners, scores)
        is_sure = scores - total[owners] > np.log(_SURE)
        needs_name = (lengths == _SHORT) | (counts >= NAME_WEIGHT)
        is_sure &= is_name | ~needs_name[owners]
        for place in np.flatnonzero(is_sure).tolist():
            better[meant[place].word] = meant[place].spelling
        return better

    def _meant(self, words: Sequence[_Word]) -> list[_Meant]:
        """Finds the known words that one slip leads from to words of the same alphabet."""
        alphabet = self.words.alphabet
        lengths = np.array([len(word.normal) for word in words])
        meant: dict[tuple[int, str], _Meant] = {}
        for length in np.unique(lengths).tolist():
            own = np.flatnonzero(lengths == length)
            letters = np.array([[*map(alphabet.index, words[i].normal)] for i in own.tolist()])
            ways = spellings(letters, alphabet)
            keys = ways.keys.ravel()
            expected = np.maximum(
                self.words.counts(keys) * self._scale, self._expected(keys)
            ).reshape(ways.keys.shape)
            row, column = np.nonzero(expected)
            slips = (ways.edits[column], ways.places[column], ways.letters[column])
            usual = self._are_usual(letters[row], *slips)
            columns = (own[row], *slips, expected[row, column], usual)
            for i, edit, place, letter, n, is_usual in zip(
                *(values.tolist() for values in columns), strict=True
            ):
                spelling = spelled(words[i].normal, edit, place, alphabet[letter])
                if spelling != words[i].normal and not (
                    (before := meant.get((i, spelling))) and before.is_usual
                ):
                    meant[i, spelling] = _Meant(i, spelling, n, is_usual)
        return [*meant.values()]

    def _are_usual(
        self, words: np.ndarray, edits: np.ndarray, places: np.ndarray, letters: np.ndarray
    ) -> np.ndarray:
        """Returns whether fingers often slip from spellings of words to the words, [v] bool.

        Args:
          words: [v, n] int, words, whose letters are places in the alphabet.
          edits, places, letters: [v] int, edits that make the spellings of them, see `Spellings`.
        """
        n = words.shape[1]
        padded = np.pad(words, ((0, 0), (0, 2)), constant_values=-1)
        at, left, right = (
            np.take_along_axis(padded, place[:, None], axis=1)[:, 0]
            for place in (places, places - 1, places + 1)
        )
        # Another form of a word is no slip: "billet", "billets"; "concedes", "conceded".
        endings = [self.words.alphabet.find(letter) for letter in "sd"]
        is_form = (edits == INSERT) & (places == n)
        is_form |= (edits == REPLACE) & (places == n - 1) & np.isin(at, endings)
        is_form &= np.isin(letters, endings)
        return ~is_form & (
            ((edits == DROP) & ((at == left) | (at == right)))
            | (edits == SWAP)
            | ((edits == REPLACE) & self._are_neighbours[at, letters])
            | (edits == INSERT)
        )

    @functools.cached_property
    def _are_neighbours(self) -> np.ndarray:
        """Returns which letters of the alphabet are neighbours on a keyboard, [A, A] bool."""
        alphabet = self.words.alphabet
        return np.array([[b in NEIGHBOURS.get(a, "") for b in alphabet] for a in alphabet])

    @functools.cached_property
    def _scale(self) -> float:
        """Returns the factor that makes counts comparable with those of `_WORDS_OF_COUNTS` words.

        A smaller catalogue says less of how frequent its words are, so its counts grow by less.
        """
        ratio = _WORDS_OF_COUNTS / max(self.words.total, 1)
        return min(ratio, math.sqrt(ratio))

    @functools.cached_property
    def _no_slip(self) -> float:
        """Returns the log-odds of no slip, which rise where the catalogue knows few words."""
        smaller = math.log10(_WORDS_OF_COUNTS / max(self.words.total, 1))
        return _NO_SLIP + _SMALLER * max(smaller, 0.0)


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
