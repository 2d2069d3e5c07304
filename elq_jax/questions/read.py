"""Labelled questions: files that people write -> `Question`s whose gold is rows of the catalogue.

A line of a .jsonl (or .jsonl.gz) file has `text`, `mentions` ([[start, end)] in characters), and
for each mention any of `entity` (title), `wikidata_id`, `label_id` (row of the catalogue; -1 says
that it is not in there). Lines of another form are told by a field of theirs, see `OTHER_FORMS`.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from elq_jax.core.errors import DataError, ElqError
from elq_jax.core.registry import Registry
from elq_jax.storage.lines import open_lines, parse_object

if TYPE_CHECKING:
    from elq_jax.entities.catalogue import Catalogue
from elq_jax.questions.records import OUT_OF_CATALOGUE, Mention, Question
from elq_jax.questions.resolve import ResolutionReport, _Parsed, _resolve

_QUESTIONS_PER_LOOKUP = 65536  # one pass over the catalogue's titles for so many questions

# A form reads (row, question without gold, require_mentions, allow_overlaps), and returns the
# question with mentions that have no rows yet, and for each mention the row that the file names.
RecordForm = Callable[[dict[str, Any], Question, bool, bool], tuple[Question, list[int | None]]]
RECORD_FORMS: Registry[RecordForm] = Registry("record form", "elq_jax.questions.read")
# Field that tells a form from the plain one, and the name under which that form is registered.
OTHER_FORMS = {"tokenized_text_ids": "elq_jax.original.el4qa:el4qa"}

_SURROGATE = re.compile("[\ud800-\udfff]")


def read_questions(
    path: str | os.PathLike[str],
    catalogue: Catalogue | None = None,
    on_error: Literal["stop", "skip"] = "stop",
    *,
    require_mentions: bool = True,
    trust_label_ids: bool = False,
    allow_overlaps: bool = False,
) -> tuple[list[Question], ResolutionReport]:
    """Reads a whole file of questions; see `iter_questions`.

    Raises:
      ElqError: there is no such file, or (labelled) it has no question.
      DataError: a row cannot be used and `on_error` is "stop".
    """
    report = ResolutionReport(os.fspath(path))
    questions = list(
        iter_questions(
            path,
            catalogue,
            on_error,
            require_mentions=require_mentions,
            trust_label_ids=trust_label_ids,
            allow_overlaps=allow_overlaps,
            report=report,
        )
    )
    return questions, report


def iter_questions(
    path: str | os.PathLike[str],
    catalogue: Catalogue | None = None,
    on_error: Literal["stop", "skip"] = "stop",
    *,
    require_mentions: bool = True,
    trust_label_ids: bool = False,
    allow_overlaps: bool = False,
    report: ResolutionReport | None = None,
) -> Iterator[Question]:
    """Yields the questions of a file in its order, in bounded memory.

    The entity of a mention is found by its label_id if the catalogue has the given title (if one
    is given) at that row, else by its Wikidata id, else by its title. A label_id of -1 is taken at
    its word: a title equal to the one of another entity proves nothing.

    Args:
      path: .jsonl or .jsonl.gz.
      catalogue: where gold is looked up. None: label_id is taken as it is.
      on_error: what to do with a row that cannot be used: "stop", or "skip" and report it.
      require_mentions: False: rows without `mentions` are questions without gold.
      trust_label_ids: take every label_id that is a row of the catalogue, whatever the title there
        (as the original does).
      allow_overlaps: take mentions of a question that overlap (as the original does).
      report: filled as the questions come.

    Raises:
      ElqError: there is no such file, or (`require_mentions`) it has no question.
      DataError: a row cannot be used and `on_error` is "stop".
    """
    if on_error not in ("stop", "skip"):
        raise ElqError(f"on_error is {on_error!r}, expected 'stop' or 'skip'")
    report = ResolutionReport(os.fspath(path)) if report is None else report
    parsed: list[_Parsed] = []
    with open_lines(path) as lines:
        for line_number, line in lines:
            try:
                row = parse_object(line, path, line_number)
                parsed.append(_parse(row, line_number, path, require_mentions, allow_overlaps))
            except DataError as error:
                if on_error == "stop":
                    raise
                report.skipped.append(str(error))
            if len(parsed) == _QUESTIONS_PER_LOOKUP:
                yield from _resolve(parsed, catalogue, trust_label_ids, report)
                parsed = []
    yield from _resolve(parsed, catalogue, trust_label_ids, report)
    if require_mentions and not report.questions:
        found = f"{len(report.skipped)} rows that cannot be used" if report.skipped else "no rows"
        shown = "".join(f"\n  {line}" for line in report.skipped[:3])
        raise DataError(f"found {found}, expected one labelled question a line{shown}", path)


def _parse(
    row: dict[str, Any],
    line_number: int,
    path: str | os.PathLike[str],
    require_mentions: bool,
    allow_overlaps: bool,
) -> _Parsed:
    try:
        text = row.get("text")
        if not isinstance(text, str):
            raise unexpected(row, "text", "a string")
        if _SURROGATE.search(text):
            raise ElqError("half of a surrogate pair (\\ud800 to \\udfff) in 'text'; remove it")
        question = Question(_question_id(row, line_number), text)
        form = next((name for field, name in OTHER_FORMS.items() if field in row), "plain")
        parse = RECORD_FORMS.get(form)
        return _Parsed(*parse(row, question, require_mentions, allow_overlaps), line_number)
    except DataError:
        raise
    except ElqError as error:
        raise DataError(str(error), path, line_number) from None


@RECORD_FORMS.register("plain")
def _parse_plain(
    row: dict[str, Any], question: Question, require_mentions: bool, allow_overlaps: bool
) -> tuple[Question, list[int | None]]:
    if row.get("mentions") is None and not require_mentions:
        return question, []
    spans = parse_spans(row, "mentions", len(question.text), "characters", allow_overlaps)
    mentions, label_ids = parse_gold(row, spans, "mentions")
    return replace(question, mentions=mentions), label_ids


def parse_gold(
    row: dict[str, Any], spans: list[tuple[int, int]], parallel_to: str
) -> tuple[tuple[Mention, ...], list[int | None]]:
    """Reads the gold entities of spans: mentions without rows, and the label ids."""
    fields = ("label_id", "wikidata_id", "entity")
    given = [name for name in fields if row.get(name) is not None]
    for name in given:
        check_length(row, name, len(spans), parallel_to)
    if spans and not given:
        raise ElqError("missing the gold entities: give 'entity', 'wikidata_id' or 'label_id'")
    label_ids, wikidata_ids, titles = (row.get(name) or [None] * len(spans) for name in fields)
    for number, label_id in enumerate(label_ids):
        if label_id is not None and label_id != OUT_OF_CATALOGUE and not is_natural(label_id):
            expected = "a row of the catalogue, -1 (not in the catalogue) or null"
            raise ElqError(f"label_id[{number}]: found {label_id!r}, expected {expected}")
    for name, values in (("wikidata_id", wikidata_ids), ("entity", titles)):
        for number, value in enumerate(values):
            if value is not None and not isinstance(value, str):
                raise ElqError(f"{name}[{number}]: found {value!r}, expected a string or null")
            if value and _SURROGATE.search(value):
                raise ElqError(f"half of a surrogate pair (\\ud800 to \\udfff) in {name!r}")
    mentions = tuple(
        Mention(start, end, title=title or None, wikidata_id=wikidata_id or None)
        for (start, end), title, wikidata_id in zip(spans, titles, wikidata_ids, strict=True)
    )
    return mentions, list(label_ids)


def _question_id(row: dict[str, Any], line_number: int) -> str:
    found = row.get("id")
    if found is None:
        return str(line_number)
    if isinstance(found, bool) or not isinstance(found, str | int):
        raise unexpected(row, "id", "a string or a number")
    return str(found)


def parse_spans(
    row: dict[str, Any], name: str, size: int, unit: str, allow_overlaps: bool
) -> list[tuple[int, int]]:
    """Reads spans: half-open, not empty, inside [0, size), in the order given.

    Raises:
      ElqError: they are not, or two overlap without `allow_overlaps`.
    """
    value = row.get(name)
    if not isinstance(value, list):
        raise unexpected(row, name, "a list of [start, end) pairs")
    spans = []
    for number, span in enumerate(value):
        if not isinstance(span, list) or len(span) != 2 or not all(map(_is_integer, span)):
            raise ElqError(f"{name}[{number}]: found {span!r}, expected [start, end) integers")
        start, end = span
        if start > end:
            raise ElqError(f"{name}[{number}] = [{start}, {end}) is reversed: start is after end")
        if start < 0 or end > size:
            raise ElqError(
                f"{name}[{number}] = [{start}, {end}) is out of range: the text has {size} {unit}"
            )
        if start == end:
            raise ElqError(f"{name}[{number}] = [{start}, {end}) is empty: end is exclusive")
        spans.append((start, end))
    ordered = sorted(spans)
    for (first, first_end), (second, second_end) in itertools.pairwise(ordered):
        if second < first_end and not allow_overlaps:
            raise ElqError(
                f"{name}: [{first}, {first_end}) and [{second}, {second_end}) overlap; "
                "mentions of a question must be apart"
            )
    return spans


def check_length(row: dict[str, Any], name: str, expected: int, parallel_to: str) -> None:
    """Raises an ElqError unless a field is a list as long as the one that it is parallel to."""
    if not isinstance(row[name], list) or len(row[name]) != expected:
        found = len(row[name]) if isinstance(row[name], list) else type(row[name]).__name__
        raise ElqError(
            f"{name!r}: found {found}, expected a list of {expected}, one for each entry of "
            f"{parallel_to!r}"
        )


def unexpected(row: dict[str, Any], name: str, expected: str) -> ElqError:
    """Makes the error that says what a field holds and what was expected."""
    found = f"found {str(row[name])[:60]!r}" if name in row else "missing"
    return ElqError(f"field {name!r}: {found}, expected {expected}")


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_natural(value: Any) -> bool:
    """Whether a value is an integer from 0 up that fits 32 bits."""
    return _is_integer(value) and 0 <= value < 2**31
