"""Checks the arguments of a linker: texts and spans."""

from __future__ import annotations

import numbers
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from elq_jax.core.errors import ElqError
from elq_jax.linking.links import ScoredSpans
from elq_jax.questions.align import align_mentions
from elq_jax.questions.records import Mention, Question
from elq_jax.text.tokenization import EncodedQuestion


def texts_of(texts: Iterable[str] | str, or_one: bool = False) -> list[str]:
    """Returns a list of the texts of any iterable; the type of each text is checked later.

    Args:
      texts: iterable of texts.
      or_one: whether a single string is taken as a list of one text.

    Raises:
      ElqError: `texts` is a string (without `or_one`), or cannot be iterated over.
    """
    if isinstance(texts, str) and or_one:
        return [texts]
    return list(stream_of(texts))


def stream_of(texts: Iterable[str]) -> Iterable[str]:
    """Returns an iterator over texts, without reading any; raises as `texts_of` does."""
    if isinstance(texts, str | bytes) or not isinstance(texts, Iterable):
        kind = "one string" if isinstance(texts, str) else type(texts).__name__
        raise ElqError(f"texts: found {kind}; give a list of strings")
    return texts


def checked(texts: Iterable[str]) -> Iterator[str]:
    """Yields texts as they are read; raises an ElqError at what is no string."""
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            kind = type(text).__name__
            raise ElqError(f"texts[{number}]: found {kind}, expected a string")
        yield text


def check_bounds(
    encoded: Sequence[EncodedQuestion], bounds: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """Checks the token bounds of spans; returns them as arrays [M, 2] int32, one per question.

    Args:
      encoded: tokens of the questions.
      bounds: arrays, one per question, [M, 2] int: first and last token (inclusive).

    Raises:
      ElqError: there are not as many arrays as questions, or a question has no such token.
    """
    if len(encoded) != len(bounds):
        raise ElqError(
            f"bounds: found {len(bounds)}, expected one array for each of {len(encoded)} texts"
        )
    arrays = [np.asarray(array, np.int32).reshape(-1, 2) for array in bounds]
    for number, (question, array) in enumerate(zip(encoded, arrays, strict=True)):
        for start, end in array.tolist():
            if not 0 <= start <= end < len(question.ids):
                raise ElqError(
                    f"bounds[{number}]: [{start}, {end}]; expected the first and the last token of "
                    f"a span, from 0 to {len(question.ids) - 1}"
                )
    return arrays


def token_bounds(
    texts: Sequence[str],
    spans: Sequence[Any],
    encoded: Sequence[EncodedQuestion],
    longest: int,
    names: Sequence[Any] | None = None,
) -> list[np.ndarray]:
    """Finds the tokens of mentions from their character offsets.

    Args:
      texts: questions.
      spans: sequences, one per question, of (start, end), half-open character offsets.
      encoded: tokens of the questions.
      longest: largest T that is read at once, [CLS] and [SEP] included.
      names: names of the questions in errors; their numbers from 0 by default.

    Returns:
      one array per question, [M, 2] int32: first and last token (inclusive).

    Raises:
      ElqError: there are not as many lists of spans as questions, or a span is not in its text,
        does not consist of whole tokens, or has more than are read at once.
    """
    for own in spans:
        if not isinstance(own, Iterable):
            raise ElqError(f"spans: found {type(own).__name__}, expected a list of (start, end)")
    if len(spans) != len(texts):
        raise ElqError(
            f"spans: found {len(spans)}, expected a list of spans for each of {len(texts)} texts"
        )
    bounds = []
    names = range(len(texts)) if names is None else names
    for name, text, text_spans, question in zip(names, texts, spans, encoded, strict=True):
        mentions = tuple(
            Mention(*_span(span, f"question {name}, mention {place}", text), -1)
            for place, span in enumerate(text_spans)
        )
        aligned = align_mentions(Question(str(name), text, mentions), question)
        if aligned.problems:
            raise ElqError(aligned.problems[0].message)
        widths = aligned.bounds[:, 1] - aligned.bounds[:, 0] + 1
        if (widths > longest - 2).any():
            place = int(widths.argmax())
            raise ElqError(
                f"question {name}, mention {place}: {widths[place]} tokens; expected at most "
                f"{longest - 2}, as many as are read at once"
            )
        bounds.append(aligned.bounds)
    return bounds


def whole_tokens(
    question: EncodedQuestion, spans: Sequence[tuple[int, int]], longest: int
) -> list[tuple[int, int] | None]:
    """Returns the characters from the first to the last token that each span touches.

    Args:
      question: tokens of the text.
      spans: half-open character offsets, anywhere in the text.
      longest: largest T that is read at once, [CLS] and [SEP] included.

    Returns:
      half-open offsets that `disambiguate` takes; None if no token lies in the span, it has more
      than are read at once, or the text is cut before its end.
    """
    starts, ends = question.offsets[1:-1].T
    read_to = question.truncated_at
    places: list[tuple[int, int] | None] = []
    for start, end in spans:
        tokens = np.flatnonzero((starts < end) & (ends > start)) if start < end else ()
        is_read = 0 < len(tokens) <= longest - 2 and (read_to is None or end <= read_to)
        place = (int(starts[tokens[0]]), int(ends[tokens[-1]])) if is_read else None
        places.append(place)
    return places


def _span(span: Any, place: str, text: str) -> tuple[int, int]:
    """Returns a span as (start, end), or raises an ElqError that begins with `place`."""
    try:
        start, end = span
        is_pair = all(isinstance(x, numbers.Integral) and not isinstance(x, bool) for x in span)
    except (TypeError, ValueError):
        is_pair = False
    if not is_pair or not 0 <= start < end <= len(text):
        raise ElqError(
            f"{place}: {span!r}; expected (start, end), characters of the text with 0 <= start < "
            f"end <= {len(text)}"
        )
    return int(start), int(end)


def warn_of_cuts(scored: ScoredSpans, longest: int, stacklevel: int) -> bool:
    """Warns once if some questions were too long to be read whole.

    Args:
      scored: scored questions.
      longest: largest T.
      stacklevel: number of the stack frame that the warning names; 1 is that of this function.

    Returns:
      whether any question was too long.
    """
    questions = zip(scored.texts, scored.encoded, strict=True)
    cut = [
        (text, question.truncated_at)
        for text, question in questions
        if question.truncated_at is not None
    ]
    if cut:
        text, end = cut[0]
        others = f" (and {len(cut) - 1:,} more texts are cut)" if len(cut) > 1 else ""
        warnings.warn(
            f"only the first {end} of {len(text)} characters are linked (max_question_tokens = "
            f"{longest}): {text[:40]!r}...{others}",
            stacklevel=stacklevel,
        )
    return bool(cut)
