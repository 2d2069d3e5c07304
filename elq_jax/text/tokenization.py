"""BERT WordPiece tokenization of questions and entities, with character offsets."""

from __future__ import annotations

import codecs
import copy
import dataclasses
import functools
import hashlib
import json
import math
import os
import pathlib
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import tokenizers
from tokenizers import normalizers, pre_tokenizers

from elq_jax.core.errors import ElqError, check_count
from elq_jax.core.strings import made_whole
from elq_jax.storage.files import atomic_write, check_not_a_pointer
from elq_jax.storage.hub import resolve_encoder
from elq_jax.text.corrections import Correction, corrected, original_offsets
from elq_jax.text.scripts import BETWEEN_WORDS, MARKS

# Between an entity's title and its text; [SEP] in vocabularies that lack it.
ENTITY_TAG = "[unused2]"
_SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_SYMBOLS = r"[\p{So}\p{Sk}\p{Cn}\p{Cs}]"  # Unicode categories; most emoji are So
_BETWEEN_WORDS = re.compile(BETWEEN_WORDS)
_MARKS = re.compile(f"[{MARKS}]+")


@dataclass(frozen=True)
class EncodedQuestion:
    """Tokens of one question.

    Attributes:
      ids: [T] int32, [CLS] ... [SEP], not padded.
      offsets: [T, 2] int32, half-open character offsets of each token in the original string;
        (0, 0) for [CLS] and [SEP]. Tokens of one character (decomposed Hangul) share its offsets.
      words: [T] int32, number of the word that each token is a part of, counted from 0; -1 for
        [CLS] and [SEP]. BERT ends a word at white space, at punctuation, and at every Chinese
        character: "[CLS] d ' iv ##oire [SEP]" gives [-1, 0, 1, 2, 2, -1]. In scripts that are
        written without blanks, such as Thai and Japanese, each token is a word.
      truncated_at: character offset of the first token that was cut off; None if none was.
      corrections: words that the tokens spell in another way than the original string. All tokens
        of such a word have its offsets.
      sentences: [b] int64, ascending positions of tokens that begin a sentence or line, where these
        are known; a text that is read in windows is cut there.
    """

    ids: np.ndarray
    offsets: np.ndarray
    words: np.ndarray
    truncated_at: int | None
    corrections: tuple[Correction, ...] = ()
    sentences: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))


class Tokenizer:
    """A BERT tokenizer: text to WordPiece ids, without padding.

    Attributes:
      vocab_size: number of ids.
      cls_id: id of [CLS].
      sep_id: id of [SEP].
      pad_id: id of [PAD].
      unk_id: id of [UNK].
      entity_tag_id: id of the token between an entity's title and its text: [unused2], or [SEP] if
        the vocabulary lacks it.
    """

    def __init__(self, backend: tokenizers.Tokenizer, source: str = "tokenizer"):
        """Wraps a BERT tokenizer of the `tokenizers` library and changes its settings.

        Args:
          backend: WordPiece tokenizer whose vocabulary has the special tokens.
          source: path or name that it was read from, for error messages.

        Raises:
          ElqError: the vocabulary is not BERT's.
        """
        self._backend = backend
        self._backend.no_truncation()
        self._backend.no_padding()
        # Literal special tokens in a text are ordinary text.
        self._backend.encode_special_tokens = True
        self._reader = self._backend
        if backend.normalizer and not _ignores_marks(backend.normalizer):
            # The vocabulary has "é", and texts may have "e" with a mark.
            self._reader = copy.deepcopy(self._backend)
            self._reader.encode_special_tokens = True
            self._reader.normalizer = normalizers.Sequence([normalizers.NFC(), backend.normalizer])

        def id_of(token: str) -> int:
            token_id = self._backend.token_to_id(token)
            if token_id is None:
                raise ElqError(
                    f"{source}: the vocabulary has no {token}; give the tokenizer of a BERT "
                    "(its vocabulary has [CLS], [SEP], [PAD] and [UNK])"
                )
            return token_id

        self.vocab_size: int = self._backend.get_vocab_size()
        self.cls_id = id_of("[CLS]")
        self.sep_id = id_of("[SEP]")
        self.pad_id = id_of("[PAD]")
        self.unk_id = id_of("[UNK]")
        tag_id = self._backend.token_to_id(ENTITY_TAG)
        self.entity_tag_id: int = self.sep_id if tag_id is None else tag_id

    @classmethod
    def from_pretrained(cls, name_or_path: str | os.PathLike[str]) -> Tokenizer:
        """Loads tokenizer.json, or else vocab.txt (with tokenizer_config.json), of an encoder.

        Args:
          name_or_path: path of a linker directory, or a name for `resolve_encoder`.

        Raises:
          ElqError: no such encoder, no tokenizer in it, or not a BERT tokenizer.
        """
        folder = resolve_encoder(name_or_path)
        path = folder / "tokenizer.json"
        if path.is_file():
            check_not_a_pointer(path)
            try:  # Not `from_file`, which takes no name that is not UTF-8.
                backend = tokenizers.Tokenizer.from_buffer(_without_mark(path.read_bytes()))
            except Exception as error:  # the library raises bare Exception
                raise ElqError(f"{path}: not a tokenizer file ({error}); copy it again") from error
        elif (folder / "vocab.txt").is_file():
            path = folder / "vocab.txt"
            backend = _from_vocabulary(folder)
        else:
            raise ElqError(
                f"{folder}: found neither tokenizer.json nor vocab.txt; give a folder with one"
            )
        return cls(backend, source=str(path))

    def with_symbols_apart(self) -> Tokenizer:
        """Returns a tokenizer for which emoji and other symbols are words of their own.

        For BERT, "paris" with an emoji glued to it is a single word, which is not in the
        vocabulary. This splits off the Unicode categories So, Sk, Cn and Cs. tokenizer.json records
        it in its "pre_tokenizer"; a second call changes nothing.
        """
        if self.has_symbols_apart:
            return self
        backend = copy.deepcopy(self._backend)
        apart = pre_tokenizers.Split(tokenizers.Regex(_SYMBOLS), "isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence([apart, backend.pre_tokenizer])
        return Tokenizer(backend)

    @property
    def has_symbols_apart(self) -> bool:
        """Returns whether this tokenizer was made by `with_symbols_apart`."""
        settings = json.loads(self._backend.to_str())["pre_tokenizer"] or {}
        return any(
            part.get("pattern") == {"Regex": _SYMBOLS} for part in settings.get("pretokenizers", [])
        )

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes tokenizer.json into `folder`."""
        with atomic_write(pathlib.Path(folder) / "tokenizer.json", "w") as file:
            file.write(self._backend.to_str())

    @functools.cached_property
    def fingerprint(self) -> str:
        """Returns the SHA-256 of everything that decides which ids a text gets."""
        settings = json.loads(self._backend.to_str())
        parts = [settings[key] for key in ("added_tokens", "normalizer", "pre_tokenizer", "model")]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def encode_questions(
        self,
        texts: Sequence[str],
        max_length: int | None,
        special_tokens_in_text: bool = False,
        correct: Callable[[Sequence[str]], Sequence[tuple[Correction, ...]]] | None = None,
    ) -> list[EncodedQuestion]:
        """Encodes questions as `[CLS] tokens [SEP]`, at most `max_length` ids each, or all of them.

        Args:
          texts: questions. A long question is cut at the end of a word, unless its first word is
            too long by itself; a text of blanks gives [CLS] [SEP].
          max_length: largest number of ids, [CLS] and [SEP] included; None: nothing is cut.
          special_tokens_in_text: whether questions are read as the original implementation does:
            a literal "[SEP]" or "[PAD]" in a question becomes that token (a [PAD] makes a hole in
            the attention mask), and a long question is cut behind any token.
          correct: function that returns the words of each question to read in another spelling, in
            the order of its text; None: questions are read as they are.

        Raises:
          ElqError: `texts` is not a sequence of strings, or `max_length` is below 3.
        """
        backend = self._backend_with_special_tokens if special_tokens_in_text else self._reader
        read = texts = _check_texts(texts, "texts")
        if correct is not None:
            corrections = correct(texts)
            read = [corrected(*pair) for pair in zip(texts, corrections, strict=True)]
        encodings = backend.encode_batch(read, add_special_tokens=False)
        if max_length is not None:
            check_count("max_length", max_length, least=3)
        room = math.inf if max_length is None else max_length - 2
        questions = [
            self._question(text, encoding, room, whole_words=not special_tokens_in_text)
            for text, encoding in zip(read, encodings, strict=True)
        ]
        if correct is None:
            return questions
        return [_as_written(*pair) for pair in zip(questions, corrections, strict=True)]

    def _question(
        self, text: str, encoding: tokenizers.Encoding, room: float, whole_words: bool
    ) -> EncodedQuestion:
        ids, offsets, words = encoding.ids, encoding.offsets, encoding.word_ids
        if not text.isascii():
            words = _without_long_words(text, offsets, words)
        end = min(len(ids), room)
        if whole_words and end < len(ids) and words[end] != words[0]:
            while words[end - 1] == words[end]:
                end -= 1
        truncated_at = offsets[end][0] if end < len(ids) else None
        if not text.isascii():
            offsets = _with_combining_marks(text, offsets)
        return EncodedQuestion(
            ids=np.array([self.cls_id, *ids[:end], self.sep_id], np.int32),
            offsets=np.array([(0, 0), *offsets[:end], (0, 0)], np.int32),
            words=np.array([-1, *words[:end], -1], np.int32),
            truncated_at=truncated_at,
        )

    def encode_entities(
        self, titles: Sequence[str | None], texts: Sequence[str], max_length: int
    ) -> list[np.ndarray]:
        """Encodes entities as `[CLS] title [unused2] text [SEP]`, at most `max_length` ids each.

        Args:
          titles: titles; for None, [unused2] is left out too.
          texts: descriptions, one per title.
          max_length: largest number of ids, [CLS] and [SEP] included; the tail is cut.

        Returns:
          int32 arrays [T], not padded. Literal special tokens are ordinary text.

        Raises:
          ElqError: an argument is not a list of strings, there is not one text for each title, or
            `max_length` is below 3.
        """
        if len(titles) != len(texts):
            raise ElqError(
                f"titles, texts: found {len(titles)} and {len(texts)}; give one text for each title"
            )
        check_count("max_length", max_length, least=3)
        room = max_length - 2
        named = _check_texts([title or "" for title in titles], "titles")
        # Offsets are not needed here, and the fast variant leaves them out.
        title_encodings = self._reader.encode_batch_fast(named, add_special_tokens=False)
        text_encodings = self._reader.encode_batch_fast(
            _check_texts(texts, "texts"), add_special_tokens=False
        )
        entities = []
        for title, head, body in zip(titles, title_encodings, text_encodings, strict=True):
            tag = [] if title is None else [self.entity_tag_id]
            ids = [*head.ids[:room], *tag, *body.ids[:room]][:room]
            entities.append(np.array([self.cls_id, *ids, self.sep_id], np.int32))
        return entities

    def whole_words(self) -> list[str]:
        """Lists the words of two and more letters that are single tokens, in the order of ids."""
        vocabulary = self._backend.get_vocab(with_added_tokens=False)
        return [
            token
            for token in sorted(vocabulary, key=vocabulary.__getitem__)
            if len(token) > 1 and _is_word(token)
        ]

    def is_whole_word(self, word: str) -> bool:
        """Returns whether `whole_words` has a word, without listing them."""
        return len(word) > 1 and _is_word(word) and self._backend.token_to_id(word) is not None

    def tokens(self, ids: Iterable[int]) -> list[str]:
        """Looks up the tokens of ids: [2054, 2015] are ["what", "##s"]."""
        return [self._backend.id_to_token(int(token)) or "[UNK]" for token in ids]

    @functools.cached_property
    def _backend_with_special_tokens(self) -> tokenizers.Tokenizer:
        backend = copy.deepcopy(self._backend)
        backend.encode_special_tokens = False
        return backend


def _as_written(question: EncodedQuestion, corrections: tuple[Correction, ...]) -> EncodedQuestion:
    """Returns a corrected question with offsets in the text as it was written."""
    if not corrections:
        return question
    offsets, cut = original_offsets(question.offsets, corrections), question.truncated_at
    if cut is not None:
        cut = int(original_offsets(np.array([[cut, cut + 1]]), corrections)[0, 0])
    return dataclasses.replace(question, offsets=offsets, truncated_at=cut, corrections=corrections)


def _without_mark(content: bytes) -> bytes:
    """Takes off the byte order mark that some editors write."""
    return content.removeprefix(codecs.BOM_UTF8)


def _from_vocabulary(folder: pathlib.Path) -> tokenizers.Tokenizer:
    """Makes a BERT tokenizer of vocab.txt; uncased unless tokenizer_config.json says otherwise."""
    import transformers

    try:
        return transformers.BertTokenizerFast.from_pretrained(folder).backend_tokenizer
    except (OSError, ValueError) as error:
        raise ElqError(
            f"{folder}: the vocabulary cannot be read ({error}); give the folder of a BERT encoder"
        ) from error


def _check_texts(texts: Sequence[str], argument: str) -> list[str]:
    """Checks texts, and replaces lone surrogates, which the library cannot take."""
    if isinstance(texts, str):
        raise ElqError(f"{argument}: found one string; give a list of strings")
    checked = []
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            kind = type(text).__name__
            raise ElqError(f"{argument}[{number}]: found {kind}, expected a string")
        checked.append(made_whole(text))
    return checked


def _ignores_marks(normalizer: normalizers.Normalizer) -> bool:
    """Returns whether accents are read alike, however they are written."""
    return normalizer.normalize_str("e\u0301") == normalizer.normalize_str("\u00e9")


def _is_word(token: str) -> bool:
    """Returns whether a token is letters and their marks alone."""
    return token.isalpha() or _MARKS.sub("", token).isalpha()


def _without_long_words(
    text: str, offsets: Sequence[tuple[int, int]], words: Sequence[int]
) -> list[int]:
    """Numbers words again, so that each token of a script without blanks is a word."""
    numbers: list[int] = []
    for place, (start, _) in enumerate(offsets):
        is_inside = place > 0 and words[place] == words[place - 1]
        if is_inside and start >= offsets[place - 1][1] and _BETWEEN_WORDS.match(text, start):
            is_inside = False
        numbers.append((numbers[-1] if numbers else -1) + (not is_inside))
    return numbers


def _is_letter_part(character: str) -> bool:
    """Returns whether a character is a mark, or a vowel or last letter of a Hangul syllable."""
    return unicodedata.category(character) in ("Mn", "Mc") or "\u1160" <= character <= "\u11ff"


def _with_combining_marks(text: str, offsets: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ends each token behind the parts of its last letter that normalization left out or composed.

    Otherwise the last letter of a decomposed "cafe\u0301" would lose its accent.
    """
    moved = []
    next_starts = [start for start, _ in offsets[1:]] + [len(text)]
    for (start, end), next_start in zip(offsets, next_starts, strict=False):
        while end < next_start and _is_letter_part(text[end]):
            end += 1
        moved.append((start, end))
    return moved
