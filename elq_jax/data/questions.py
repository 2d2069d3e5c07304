"""Labelled questions: files that people write -> `Question`s whose gold is rows of the catalogue.

Two forms of .jsonl (or .jsonl.gz) lines are read, told apart line by line:

- plain: `text`, `mentions` ([[start, end)] in characters), and for each mention any of `entity`
  (title), `wikidata_id`, `label_id` (row of the catalogue; -1 says that it is not in there);
- the published EL4QA form, which has `tokenized_text_ids` and `tokenized_mention_idxs` besides.

`prepare` keeps the resolved questions as a TFDS data set (array_record), to be read at random.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from elq_jax.data.files import open_source, parse_object, read_lines
from elq_jax.errors import DataError, ElqError

if TYPE_CHECKING:
    from elq_jax.data.builders import LabelledQuestions
    from elq_jax.data.catalogue import Catalogue

OUT_OF_CATALOGUE = -1
UNKNOWN_OFFSET = -1
_QUESTIONS_PER_LOOKUP = 65536  # one pass over the catalogue's titles for so many questions
_SHOWN = 5
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Mention:
    """One gold mention.

    Attributes:
      start: first character in the text of the question (Unicode code points); -1 if unknown,
        which happens in the EL4QA form only.
      end: one past the last character; -1 if unknown.
      row: row of the entity in the catalogue; -1 if it is not in there.
      title: title of the entity, as the file has it.
      wikidata_id: Wikidata id of the entity, as the file has it.
    """

    start: int
    end: int
    row: int = OUT_OF_CATALOGUE
    title: str | None = None
    wikidata_id: str | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """A question and its gold mentions, in the order of the file.

    Attributes:
      id: the file's, or else the line number.
      text: the question.
      mentions: gold mentions; empty as well where a file has no labels.
      token_ids: EL4QA form: WordPiece ids without [CLS] and [SEP], which the original uses as they
        are. None in the plain form.
      token_mentions: EL4QA form: half-open positions in `token_ids`, one pair for each mention.
    """

    id: str
    text: str
    mentions: tuple[Mention, ...] = ()
    token_ids: tuple[int, ...] | None = None
    token_mentions: tuple[tuple[int, int], ...] | None = None


@dataclass
class ResolutionReport:
    """What was read from one file, and how its gold entities were found in the catalogue.

    Attributes:
      path: the file.
      questions: number of questions read.
      counts: number of mentions by the way their entity was decided: "label_id", "wikidata_id",
        "title"; "out_of_catalogue" (label_id is -1), "unresolved" (nothing given is in the
        catalogue), "unchecked" (neither label_id nor a catalogue was given). Two more are counted
        beside these: "label_id_refused" (not a row, or its title is another one: the other fields
        decided) and "no_offsets" (EL4QA mentions whose character offsets cannot be used).
      unresolved: one line for each unresolved mention.
      skipped: one line for each row left out (`on_error="skip"`).
    """

    path: str
    questions: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    unresolved: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    @property
    def mentions(self) -> int:
        """Number of gold mentions read."""
        return self.counts.total() - self.counts["label_id_refused"] - self.counts["no_offsets"]

    def summary(self) -> str:
        """A few lines for a person to read."""
        counts = ", ".join(f"{name} {number:,}" for name, number in sorted(self.counts.items()))
        lines = [f"{self.path}: {self.questions:,} questions, {self.mentions:,} mentions"]
        if counts:
            lines[0] += f" ({counts})"
        for name, listed in (("skipped", self.skipped), ("unresolved", self.unresolved)):
            if listed:
                lines.append(f"  {len(listed):,} {name}:")
                lines += [f"    {line}" for line in listed[:_SHOWN]]
                if len(listed) > _SHOWN:
                    lines.append(f"    ... and {len(listed) - _SHOWN:,} more")
        return "\n".join(lines)


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
    with open_source(path) as source:
        for line_number, line in read_lines(source, path):
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


def prepare(
    name: str,
    splits: Mapping[str, str | os.PathLike[str]],
    data_dir: str | os.PathLike[str],
    catalogue: Catalogue | None = None,
    on_error: Literal["stop", "skip"] = "stop",
    *,
    trust_label_ids: bool = False,
) -> LabelledQuestions:
    """Keeps labelled questions as a TFDS data set of array_record files; needs no TensorFlow.

    A second call with the same files and the same catalogue opens what the first one wrote. Its
    name in `data_dir` has a hash of them, so that changed files never meet old records.

    Args:
      name: of the data set, for instance "webqsp".
      splits: split name -> .jsonl or .jsonl.gz file, see `iter_questions`.
      data_dir: folder that holds prepared data sets.
      catalogue: where gold is looked up.
      on_error: "stop" at a row that cannot be used, or "skip" it.
      trust_label_ids: see `iter_questions`.

    Returns:
      A TFDS builder: `builder.open_split("train")` is a random access source of `Question`s,
      `builder.reports["train"]` its `ResolutionReport`.

    Raises:
      ElqError, DataError: as `read_questions` does; nothing is left behind then.
    """
    from elq_jax.data import builders

    return builders.prepare(name, splits, data_dir, catalogue, on_error, trust_label_ids)


@dataclass(frozen=True, slots=True)
class _Parsed:
    """A question whose mentions have no rows yet, and what the file says of the rows."""

    question: Question
    label_ids: list[int | None]
    line_number: int


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
            raise _unexpected(row, "text", "a string")
        if _SURROGATE.search(text):
            raise ElqError("half of a surrogate pair (\\ud800 to \\udfff) in 'text'; remove it")
        question = Question(_question_id(row, line_number), text)
        if "tokenized_text_ids" in row:
            return _parse_tokenized(row, question, line_number, require_mentions, allow_overlaps)
        return _parse_plain(row, question, line_number, require_mentions, allow_overlaps)
    except DataError:
        raise
    except ElqError as error:
        raise DataError(str(error), path, line_number) from None


def _parse_plain(
    row: dict[str, Any],
    question: Question,
    line_number: int,
    require_mentions: bool,
    allow_overlaps: bool,
) -> _Parsed:
    if row.get("mentions") is None and not require_mentions:
        return _Parsed(question, [], line_number)
    spans = _spans(row, "mentions", len(question.text), "characters", allow_overlaps)
    mentions, label_ids = _gold(row, spans, "mentions")
    return _Parsed(replace(question, mentions=mentions), label_ids, line_number)


def _parse_tokenized(
    row: dict[str, Any],
    question: Question,
    line_number: int,
    require_mentions: bool,
    allow_overlaps: bool,
) -> _Parsed:
    ids = row["tokenized_text_ids"]
    if not isinstance(ids, list) or not ids or not all(_is_natural(i) for i in ids):
        raise _unexpected(row, "tokenized_text_ids", "a list of token ids that is not empty")
    question = replace(question, token_ids=tuple(ids), token_mentions=())
    if row.get("tokenized_mention_idxs") is None and not require_mentions:
        return _Parsed(question, [], line_number)
    token_spans = _spans(row, "tokenized_mention_idxs", len(ids), "tokens", allow_overlaps)
    # The token positions are what counts. Offsets that cannot be are "unknown", not an error.
    spans = [(UNKNOWN_OFFSET, UNKNOWN_OFFSET)] * len(token_spans)
    if row.get("mentions") is not None:
        _check_length(row, "mentions", len(token_spans), "tokenized_mention_idxs")
        with contextlib.suppress(ElqError):
            spans = _spans(row, "mentions", len(question.text), "characters", allow_overlaps)
    mentions, label_ids = _gold(row, spans, "tokenized_mention_idxs")
    question = replace(question, mentions=mentions, token_mentions=tuple(token_spans))
    return _Parsed(question, label_ids, line_number)


def _gold(
    row: dict[str, Any], spans: list[tuple[int, int]], parallel_to: str
) -> tuple[tuple[Mention, ...], list[int | None]]:
    """Mentions without rows, and the label ids."""
    fields = ("label_id", "wikidata_id", "entity")
    given = [name for name in fields if row.get(name) is not None]
    for name in given:
        _check_length(row, name, len(spans), parallel_to)
    if spans and not given:
        raise ElqError("missing the gold entities: give 'entity', 'wikidata_id' or 'label_id'")
    label_ids, wikidata_ids, titles = (row.get(name) or [None] * len(spans) for name in fields)
    for number, label_id in enumerate(label_ids):
        if label_id is not None and label_id != OUT_OF_CATALOGUE and not _is_natural(label_id):
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
        raise _unexpected(row, "id", "a string or a number")
    return str(found)


def _spans(
    row: dict[str, Any], name: str, size: int, unit: str, allow_overlaps: bool
) -> list[tuple[int, int]]:
    """Half-open, not empty, inside [0, size), perhaps not overlapping; in the order given."""
    value = row.get(name)
    if not isinstance(value, list):
        raise _unexpected(row, name, "a list of [start, end) pairs")
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


def _check_length(row: dict[str, Any], name: str, expected: int, parallel_to: str) -> None:
    if not isinstance(row[name], list) or len(row[name]) != expected:
        found = len(row[name]) if isinstance(row[name], list) else type(row[name]).__name__
        raise ElqError(
            f"{name!r}: found {found}, expected a list of {expected}, one for each entry of "
            f"{parallel_to!r}"
        )


def _unexpected(row: dict[str, Any], name: str, expected: str) -> ElqError:
    found = f"found {str(row[name])[:60]!r}" if name in row else "missing"
    return ElqError(f"field {name!r}: {found}, expected {expected}")


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_natural(value: Any) -> bool:
    return _is_integer(value) and 0 <= value < 2**31


def _resolve(
    parsed: Iterable[_Parsed],
    catalogue: Catalogue | None,
    trust_label_ids: bool,
    report: ResolutionReport,
) -> Iterator[Question]:
    """Fills in the rows of many questions at once."""
    given = [
        (item, mention, -2 if label_id is None else label_id)
        for item in parsed
        for mention, label_id in zip(item.question.mentions, item.label_ids, strict=True)
    ]
    labels = np.array([label for _, _, label in given], np.int64)
    titles = np.array([mention.title for _, mention, _ in given], object)
    wikidata_ids = np.array([mention.wikidata_id for _, mention, _ in given], object)

    rows = np.full(len(given), OUT_OF_CATALOGUE)
    how = np.full(len(given), "unresolved" if catalogue is not None else "unchecked", object)

    def decide(places: np.ndarray, found: np.ndarray, name: str) -> None:
        rows[places], how[places] = found, name

    declared_out = labels == OUT_OF_CATALOGUE
    decide(declared_out, labels[declared_out], "out_of_catalogue")
    trusted = labels >= 0
    if catalogue is not None:
        trusted &= labels < len(catalogue)
        if not trust_label_ids:
            places = np.flatnonzero(trusted & (titles != None))  # noqa: E711 (elementwise)
            trusted[places] = np.array(catalogue.titles(labels[places]), object) == titles[places]
    decide(trusted, labels[trusted], "label_id")
    if catalogue is not None:
        for name, values, find in (
            ("wikidata_id", wikidata_ids, catalogue.rows_of_wikidata_ids),
            ("title", titles, catalogue.rows_of_titles),
        ):
            places = np.flatnonzero((how == "unresolved") & (values != None))  # noqa: E711
            if places.size:
                found = find(values[places].tolist())
                decide(places[found >= 0], found[found >= 0], name)

    report.counts.update(how.tolist())
    report.counts["label_id_refused"] += int(((labels >= 0) & ~trusted).sum())
    report.counts["no_offsets"] += sum(m.start == UNKNOWN_OFFSET for _, m, _ in given)
    report.counts = +report.counts  # drops zeros
    for place in np.flatnonzero(how == "unresolved"):
        item, mention, label = given[place]
        text = item.question.text[mention.start : mention.end] if mention.start >= 0 else "?"
        report.unresolved.append(
            f"line {item.line_number}, question {item.question.id}, mention {text!r}: entity "
            f"{mention.title!r}, wikidata_id {mention.wikidata_id!r}, label_id "
            f"{label if label >= 0 else None}: none is in the catalogue"
        )

    position = 0
    for item in parsed:
        mentions = item.question.mentions
        found = rows[position : position + len(mentions)].tolist()
        position += len(mentions)
        report.questions += 1
        filled = (replace(mention, row=row) for mention, row in zip(mentions, found, strict=True))
        yield replace(item.question, mentions=tuple(filled))
