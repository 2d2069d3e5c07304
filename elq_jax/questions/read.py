"""Reads files of labelled questions, and finds their gold entities in the catalogue.

The form of a line is described in `elq_jax.questions.records`. Lines of other forms are recognised
by a field, see `OTHER_FORMS`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from elq_jax.core.errors import DataError, ElqError
from elq_jax.core.registry import Registry
from elq_jax.core.strings import check_whole
from elq_jax.core.typed import convert
from elq_jax.questions.records import (
    OUT_OF_CATALOGUE,
    GoldLists,
    LinksRow,
    Mention,
    Question,
    Span,
    TextRow,
    check_spans,
)
from elq_jax.questions.resolve import ResolutionReport, _Parsed, _resolve
from elq_jax.storage.lines import open_lines, parse_object

if TYPE_CHECKING:
    from elq_jax.entities.catalogue import Catalogue

_QUESTIONS_PER_LOOKUP = 65536  # Each look-up is one pass over the titles of the catalogue.

# A form is a function of (row, question without gold, require_mentions, allow_overlaps). It returns
# the question with its mentions, which have no rows yet, and the row in the file of each mention.
RecordForm = Callable[[dict[str, Any], Question, bool, bool], tuple[Question, list[int | None]]]
RECORD_FORMS: Registry[RecordForm] = Registry("record form", "elq_jax.questions.read")
# Field by which a form is recognised, and the name under which that form is registered.
OTHER_FORMS = {
    "tokenized_text_ids": "elq_jax.original.el4qa:el4qa",
    "labels": "elq_jax.questions.elevant:elevant",
}


def read_questions(
    path: str | os.PathLike[str],
    catalogue: Catalogue | None = None,
    on_error: Literal["stop", "skip"] = "stop",
    *,
    require_mentions: bool = True,
    trust_rows: bool = False,
    allow_overlaps: bool = False,
) -> tuple[list[Question], ResolutionReport]:
    """Reads a whole file of questions, with a report; see `iter_questions`.

    Raises:
      ElqError: there is no such file, or (`require_mentions`) it has no question.
      DataError: a row cannot be used and `on_error` is "stop".
    """
    report = ResolutionReport(os.fspath(path))
    questions = list(
        iter_questions(
            path,
            catalogue,
            on_error,
            require_mentions=require_mentions,
            trust_rows=trust_rows,
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
    trust_rows: bool = False,
    allow_overlaps: bool = False,
    report: ResolutionReport | None = None,
) -> Iterator[Question]:
    """Yields the questions of a file in its order, in bounded memory.

    A mention in the file names its entity by row, Wikidata id or title. They are tried in this
    order, and the first that the catalogue knows decides:

    1. the row, if the title in the file, where there is one, is also the title of that row;
    2. the Wikidata id;
    3. the title.

    A row of -1 says that the entity is not in the catalogue; nothing else is tried then, since
    another entity may have the same title. `ResolutionReport` counts how each entity was found.

    Args:
      path: path of a file of JSON lines, gzip or not, or of a pipe.
      catalogue: catalogue in which gold entities are looked up; None: nothing is looked up, and
        rows are taken as they are.
      on_error: action at a row that cannot be used: "stop", or "skip" to leave it out and report
        it.
      require_mentions: whether a row without mentions is an error; otherwise it is a question
        without gold.
      trust_rows: whether the titles of rows are not compared (the original does not compare them).
      allow_overlaps: whether mentions of a question may overlap (the original allows it).
      report: report that is filled while questions are read.

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
                yield from _resolve(parsed, catalogue, trust_rows, report)
                parsed = []
    yield from _resolve(parsed, catalogue, trust_rows, report)
    if require_mentions and not report.questions:
        rows = f"{len(report.skipped)} rows that cannot be used" if report.skipped else "no rows"
        reasons = "".join(f"\n  {line}" for line in report.skipped[:3])
        raise DataError(f"found {rows}, expected a labelled question on each line{reasons}", path)


def _parse(
    row: dict[str, Any],
    line_number: int,
    path: str | os.PathLike[str],
    require_mentions: bool,
    allow_overlaps: bool,
) -> _Parsed:
    try:
        header = convert(row, TextRow)
        check_whole("field 'text'", header.text)
        if isinstance(header.id, float) and not math.isfinite(header.id):
            raise ElqError(f"field 'id': {header.id}; expected a finite number or a string")
        question = Question(str(line_number if header.id in (None, "") else header.id), header.text)
        parse = RECORD_FORMS.get(_form_of(row))
        question, gold_rows = parse(row, question, require_mentions, allow_overlaps)
        return _Parsed(_with_neutral(row, question), gold_rows, line_number)
    except DataError:
        raise
    except ElqError as error:
        message = str(error)
        if "text" not in row and isinstance(row.get("error"), str):
            message += f" (the line says: {row['error']})"
        raise DataError(message, path, line_number) from None


def _form_of(row: dict[str, Any]) -> str:
    """Returns the name of the form of a row; one with mentions or links may have other labels."""
    if "tokenized_text_ids" not in row and ("mentions" in row or "links" in row):
        return "plain"
    return next((name for field, name in OTHER_FORMS.items() if field in row), "plain")


def _with_neutral(row: dict[str, Any], question: Question) -> Question:
    """Reads the spans of a row that may or may not be mentions."""
    size = len(question.text)
    names = [name for name in ("neutral", "evaluation_span") if row.get(name) is not None]
    if not names:
        return question
    spans, labelled = list(question.neutral), None
    if "neutral" in names:
        spans += parse_spans(row, "neutral", size, "characters", allow_overlaps=True)
    if "evaluation_span" in names:
        start, end = labelled = evaluation_span(row, size)
        spans += [span for span in ((0, start), (end, size)) if span[0] < span[1]]
    if spans and question.token_ids is not None:
        raise ElqError(
            f"found {names[0]!r} beside 'tokenized_text_ids'; its character offsets have no "
            "tokens: remove one of the two fields"
        )
    return replace(question, neutral=tuple(spans), evaluation_span=labelled)


def evaluation_span(row: dict[str, Any], size: int) -> Span:
    """Returns the part of a text whose mentions are labelled; by default all of it.

    Args:
      row: JSON line.
      size: number of characters of its text.
    """
    if row.get("evaluation_span") is None:
        return 0, size
    try:
        [(start, end)] = convert({"spans": [row["evaluation_span"]]}, _Spans).spans
    except ElqError:
        raise unexpected(row, "evaluation_span", "[start, end)") from None
    if not 0 <= start <= end <= size:
        raise ElqError(f"evaluation_span = [{start}, {end}): the text has {size} characters")
    return start, end


@RECORD_FORMS.register("plain")
def _parse_plain(
    row: dict[str, Any], question: Question, require_mentions: bool, allow_overlaps: bool
) -> tuple[Question, list[int | None]]:
    has_mentions, has_links = (row.get(name) is not None for name in ("mentions", "links"))
    if has_mentions and has_links:
        raise ElqError("found both 'mentions' and 'links'; give the gold in one of them")
    if has_links:
        return _parse_links(row, question, allow_overlaps)
    if not has_mentions and not require_mentions:
        return question, []
    spans = parse_spans(row, "mentions", len(question.text), "characters", allow_overlaps)
    mentions, gold_rows = parse_gold(row, spans, "mentions")
    return replace(question, mentions=mentions), gold_rows


def _parse_links(
    row: dict[str, Any], question: Question, allow_overlaps: bool
) -> tuple[Question, list[int | None]]:
    """Reads gold as `elq_jax.link` writes it: an object for each mention."""
    links = convert(row, LinksRow).links
    spans = [(link.start, link.end) for link in links]
    check_spans(spans, "links", len(question.text), "characters", allow_overlaps)
    mentions: list[Mention] = []
    rows: list[int | None] = []
    for number, link in enumerate(links):
        place, quoted = f"links[{number}]", question.text[link.start : link.end]
        if link.mention is not None and link.mention != quoted:
            raise ElqError(
                f"{place}: 'mention' is {link.mention!r}, but the text has {quoted!r} at "
                f"[{link.start}, {link.end}); offsets count characters from 0, not bytes"
            )
        row = link.row
        named = link.title or link.wikidata_id or link.id
        if not named and not isinstance(row, int):
            if row is msgspec.UNSET:
                raise ElqError(f"{place}: {_NO_GOLD}")
            row = OUT_OF_CATALOGUE
        rows.append(row if isinstance(row, int) else None)
        mention = _mention((link.start, link.end), link.title, link.wikidata_id)
        mentions.append(replace(mention, entity_id=link.id))
    return replace(question, mentions=tuple(mentions)), rows


_RENAMED = ("title", "row")  # Their former names are "entity" and "label_id".
_NO_GOLD = "the gold entities are missing; give 'title', 'wikidata_id' or 'row'"


def parse_gold(
    row: dict[str, Any], spans: list[Span], parallel_to: str
) -> tuple[tuple[Mention, ...], list[int | None]]:
    """Reads the gold entities of spans from parallel lists.

    Args:
      row: JSON line.
      spans: [start, end) of the mentions.
      parallel_to: name of the field that holds the spans, for messages.

    Returns:
      the mentions, which have no rows yet, and the row in the file of each mention.

    Raises:
      ElqError: there is no such list, or one has another length or values of another type.
    """
    names = [_former_or_new(row, "row", "label_id"), "wikidata_id"]
    names.append(_former_or_new(row, "title", "entity"))
    present = {name: row[name] for name in names if row.get(name) is not None}
    if "label_id" in row or "entity" in row:
        # In such a file, `title` and `row` may be fields of the question, and then are no lists.
        present = {
            name: value
            for name, value in present.items()
            if name not in _RENAMED or isinstance(value, list)
        }
    for name in present:
        check_length(row, name, len(spans), parallel_to)
    if spans and not present:
        raise ElqError(_NO_GOLD)
    lists = convert(present, GoldLists)
    rows, ids, titles = (getattr(lists, name) or [None] * len(spans) for name in names)
    mentions = tuple(map(_mention, spans, titles, ids))
    return mentions, list(rows)


def _former_or_new(row: dict[str, Any], name: str, former: str) -> str:
    """Returns the name of a list in a row: the former name if the row has it, else the new one."""
    lists = [row[key] for key in (name, former) if isinstance(row.get(key), list)]
    if len(lists) == 2 and lists[0] != lists[1]:
        raise ElqError(f"found both {name!r} and {former!r}, its former name; give {name!r} only")
    return name if row.get(former) is None else former


def _mention(span: Span, title: str | None, wikidata_id: str | None) -> Mention:
    """Makes a gold mention without its row; an empty string counts as absent."""
    for name, value in (("title", title), ("wikidata_id", wikidata_id)):
        check_whole(f"field {name!r}", value or "")
    return Mention(*span, title=title or None, wikidata_id=wikidata_id or None)


class _Spans(msgspec.Struct, frozen=True):
    spans: list[Span]


def parse_spans(
    row: dict[str, Any], name: str, size: int, unit: str, allow_overlaps: bool
) -> list[Span]:
    """Reads a field of [start, end) pairs, in their order; see `check_spans`.

    Raises:
      ElqError: there is no such field, or it is not a list of such pairs.
    """
    if row.get(name) is None:
        raise ElqError(f"field {name!r}: missing, expected a list of [start, end) pairs")
    try:
        spans = convert({"spans": row[name]}, _Spans).spans
    except ElqError as error:
        raise ElqError(str(error).replace("'spans", f"'{name}", 1)) from None
    check_spans(spans, name, size, unit, allow_overlaps)
    return spans


def check_length(row: dict[str, Any], name: str, expected: int, parallel_to: str) -> None:
    """Raises an ElqError unless a field is a list as long as the one that it is parallel to."""
    if not isinstance(row[name], list) or len(row[name]) != expected:
        is_list = isinstance(row[name], list)
        kind = f"a list of {len(row[name])}" if is_list else type(row[name]).__name__
        raise ElqError(
            f"{name!r}: found {kind}, expected a list of {expected}, one value for each entry of "
            f"{parallel_to!r}"
        )


def unexpected(row: dict[str, Any], name: str, expected: str) -> ElqError:
    """Makes the error that says what a field holds and what was expected."""
    value = f"found {str(row[name])[:60]!r}" if name in row else "missing"
    return ElqError(f"field {name!r}: {value}, expected {expected}")


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_natural(value: Any) -> bool:
    """Returns whether a value is an integer from 0 up that fits 32 bits."""
    return _is_integer(value) and 0 <= value < 2**31
