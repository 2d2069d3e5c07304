"""Finds neutral spans: unlabelled names of the catalogue in partially labelled questions."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from elq_jax.entities.name_index import NameIndex
from elq_jax.questions.words import ARTICLES, FUNCTION_WORDS, WORD

if TYPE_CHECKING:
    from elq_jax.entities.catalogue import Catalogue
    from elq_jax.questions.records import Question, Span

SingleWords = Literal["never", "capitalised", "always"]
SINGLE_WORDS: tuple[SingleWords, ...] = get_args(SingleWords)

_MOST_WORDS = 8
_QUESTIONS_AT_ONCE = 1024


@dataclass(frozen=True)
class NeutralNames:
    """Adds neutral spans to questions of which not all mentions are labelled.

    A span of whole words is neutral if
      1. it is the name of an entity of the catalogue: its title, with or without the qualifier in
         parentheses, or an alias, however written (see `names.normal_names`),
      2. it overlaps no gold mention,
      3. at least two of its words, of which there are at most 8, are no function words such as
         "who" or "to"; or it is a single word, besides an article, that `single_words` allows.

    Attributes:
      catalogue: catalogue of the names.
      single_words: single words that may be neutral: "never" any; "capitalised", those that begin
        with a capital and are not the first of the text; "always" all, which leaves the detection
        of mentions few negatives, since language, country and play are names too.
    """

    catalogue: Catalogue
    single_words: SingleWords = "never"

    @property
    def inputs(self) -> dict[str, Any]:
        """Returns what the spans depend on, as for a `ResumeRecord`."""
        return {"catalogue": self.catalogue.path, "single_words": self.single_words}

    @functools.cached_property
    def _names(self) -> NameIndex:
        return NameIndex.build(self.catalogue)

    def add_to(self, questions: Iterable[Question]) -> Iterator[Question]:
        """Yields questions with the neutral spans of their files and those found, sorted.

        Questions that are given as tokens are yielded as they are.
        """
        questions = iter(questions)
        while part := list(itertools.islice(questions, _QUESTIONS_AT_ONCE)):
            yield from self._added(part)

    def _added(self, questions: Sequence[Question]) -> Iterator[Question]:
        spans = [self._candidates(question) for question in questions]
        texts = [
            question.text[start:end]
            for question, own in zip(questions, spans, strict=True)
            for start, end in own
        ]
        named = self._names.find(texts)
        is_name = np.zeros(len(texts), bool)
        is_name[named.texts] = True
        places = iter(is_name.tolist())
        for question, own in zip(questions, spans, strict=True):
            found = {span for span in own if next(places)}
            yield replace(question, neutral=tuple(sorted(found | {*question.neutral})))

    def _candidates(self, question: Question) -> list[Span]:
        """Lists the spans of a question that are neutral if they are names."""
        if question.token_ids is not None:
            return []
        is_gold = bytearray(len(question.text))
        for mention in question.mentions:
            is_gold[mention.start : mention.end] = b"\1" * (mention.end - mention.start)
        return [
            (start, end)
            for start, end in name_spans(question.text, self.single_words)
            if is_gold.find(1, start, end) < 0
        ]


def name_spans(text: str, single_words: SingleWords = "never") -> Iterator[Span]:
    """Yields the spans of whole words that may be names; see condition 3 of `NeutralNames`.

    A possessive is no part of the name: of "Obama's wife", there are "Obama" and "Obama's wife".
    """
    words = [match.span() for match in WORD.finditer(text)]
    lowered = [text[start:end].lower() for start, end in words]
    is_content = [word not in FUNCTION_WORDS for word in lowered]
    for first, (start, _) in enumerate(words):
        content = 0
        for last in range(first, min(first + _MOST_WORDS, len(words))):
            content += is_content[last]
            is_single = last == first + (lowered[first] in ARTICLES)
            if content < 2 and not (
                content and is_single and _is_allowed(text, words, last, single_words)
            ):
                continue
            end = words[last][1]
            yield start, end
            if lowered[last].endswith(("'s", "’s")) and len(lowered[last]) > 2:
                yield start, end - 2


def _is_allowed(text: str, words: Sequence[Span], word: int, single_words: SingleWords) -> bool:
    """Returns whether a single word may be neutral."""
    if single_words == "capitalised":
        return word > 0 and text[words[word][0]].isupper()
    return single_words == "always"
