"""Reads texts that are to be linked, from files, folders, streams or the command line."""

from __future__ import annotations

import contextlib
import math
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO, Literal

from elq_jax.core.errors import DataError, ElqError
from elq_jax.core.strings import is_whole, made_whole
from elq_jax.questions.records import QuestionRow, check_spans
from elq_jax.storage.lines import (
    LineDecoder,
    LineReader,
    decode_document,
    decode_text,
    parse_object,
)

Form = Literal["txt", "jsonl", "document"]

_decode = LineDecoder(QuestionRow)


@dataclass(frozen=True, slots=True)
class Row:
    """Holds one row of the input.

    Attributes:
      id: id in the file, or else the number of the line, from 1.
      text: text of the question.
      error: message about a row that cannot be used; None if it can.
      spans: half-open character offsets of the mentions that the row names; None if the model is to
        find the mentions.
      place: name of the file and number of the line, for messages; "" where there is none.
    """

    id: str | int | float
    text: str = ""
    error: str | None = None
    spans: tuple[tuple[int, int], ...] | None = None
    place: str = field(default="", compare=False)


def form_of(path: str | os.PathLike[str]) -> Form:
    """Returns the form of a file of texts by the end of its name, in upper or lower case.

    A folder is of documents.

    Raises:
      ElqError: the name ends neither in .txt nor in .jsonl, each with or without .gz.
    """
    if os.path.isdir(path):
        return "document"
    name = os.fspath(path).lower().removesuffix(".gz")
    if name.endswith(".txt"):
        return "txt"
    if name.endswith(".jsonl"):
        return "jsonl"
    raise ElqError(
        f"{os.fspath(path)}: the name ends in none of .txt, .jsonl, .txt.gz, .jsonl.gz; give "
        "--input_format=txt, --input_format=jsonl or --input_format=document"
    )


def read_rows(
    source: BinaryIO,
    name: str | os.PathLike[str],
    form: Form,
    on_error: Literal["stop", "skip"] = "stop",
    *,
    is_guess: bool = False,
    with_mentions: bool = True,
) -> Iterator[Row]:
    """Yields the rows of a file or stream, reading no further than the yielded rows.

    Args:
      source: binary stream with `peek`; gzip is recognised by its first bytes.
      name: name of the stream, for messages.
      form: form of the file. "txt": each line is a text; an empty line is an empty one. "jsonl":
        each line is an object with `text` and, optionally, `id` and `mentions` ([[start, end),
        ...]); blank lines are skipped. "document": all of it is one text.
      on_error: action at a row that cannot be used: "stop", or "skip" to yield it with its `error`.
      is_guess: whether the form is only a guess; plain text that begins with a JSON object is
        refused then.
      with_mentions: whether mentions in the file are used; otherwise the model finds mentions, for
        instance to try a linker on labelled questions.

    Raises:
      ElqError: a row cannot be used (`on_error="stop"`), or the file as a whole cannot be read.
    """
    reader = LineReader(source, name)
    if form == "document":
        yield _checked(_parse_document(reader, os.path.basename(name)), on_error)
        return
    parse = _parse_object if form == "jsonl" else _parse_text
    for number, line in reader if form == "jsonl" else reader.lines():
        if number == 1 and form == "txt" and is_guess:
            _check_not_json(line, name)
        row = _checked(parse(line, name, number), on_error)
        yield row if with_mentions else replace(row, spans=None)


def read_documents(
    folder: pathlib.Path, names: Sequence[str], on_error: Literal["stop", "skip"] = "stop"
) -> Iterator[Row]:
    """Yields a row for each file of a folder; its id is the path of the file in there.

    Args:
      folder: path of the folder.
      names: paths of the files in it, see `document_names`.
      on_error: action at a file that cannot be used, see `read_rows`.

    Raises:
      ElqError: a file cannot be used (`on_error="stop"`).
    """
    for name in names:
        with open(folder / name, "rb") as source:
            yield _checked(_parse_document(LineReader(source, folder / name), name), on_error)


def document_names(folder: pathlib.Path) -> list[str]:
    """Lists the files in a folder, and in those inside of it, whose names end in .txt or .txt.gz.

    Raises:
      ElqError: there are none.
    """
    names = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.name.lower().removesuffix(".gz").endswith(".txt") and path.is_file()
    )
    if not names:
        raise ElqError(f"{folder}: no file in this folder ends in .txt or .txt.gz; expected texts")
    return names


def _checked(row: Row, on_error: Literal["stop", "skip"]) -> Row:
    """Returns a row; raises an ElqError if it cannot be used and the job stops then."""
    if row.error is not None and on_error == "stop":
        raise ElqError(row.error)
    return row


@contextlib.contextmanager
def open_rows(
    source: pathlib.Path | BinaryIO | Sequence[str],
    form: Literal["auto", "txt", "jsonl", "document"] = "auto",
    on_error: Literal["stop", "skip"] = "stop",
    with_mentions: bool = True,
) -> Iterator[tuple[Iterable[Row], int | None]]:
    """Opens texts in a file, in a folder, in a stream or on the command line.

    Args:
      source: path of a file or folder, binary stream such as stdin, or list of typed questions.
      form: form of the file, see `read_rows`; "auto": by the file's name, a stream as text.
      on_error, with_mentions: arguments of `read_rows`.

    Yields:
      the rows, and their number; None if it is not known.

    Raises:
      ElqError: there is no such file, or its name does not tell its form.
    """
    is_guess = form == "auto"
    options = {"is_guess": is_guess, "with_mentions": with_mentions}
    if isinstance(source, pathlib.Path):
        form = form_of(source) if is_guess else form
        if form == "document" and source.is_dir():
            names = document_names(source)
            yield read_documents(source, names, on_error), len(names)
            return
        if not source.exists() or source.is_dir():
            problem = "is a folder" if source.is_dir() else "no such file"
            raise ElqError(
                f"{source}: {problem}; expected a file of texts, or with "
                "--input_format=document a folder of .txt files"
            )
        total = count_rows(source, form) if source.is_file() else None  # A pipe is read once.
        with open(source, "rb") as file:
            yield read_rows(file, source, form, on_error, **options), total
    elif isinstance(source, Sequence):
        yield rows_of_arguments(source), len(source)
    else:
        form = "txt" if is_guess else form
        yield read_rows(source, "stdin", form, on_error, **options), None


def count_rows(path: str | os.PathLike[str], form: Form) -> int:
    """Counts the rows that `read_rows` yields."""
    if form == "document":
        return 1
    with open(path, "rb") as source:
        reader = LineReader(source, path)
        return sum(1 for _ in (reader if form == "jsonl" else reader.lines()))


def rows_of_arguments(questions: Sequence[str]) -> list[Row]:
    """Makes rows from questions on the command line.

    Raises:
      ElqError: a question is not UTF-8.
    """
    for number, question in enumerate(questions, 1):
        if not is_whole(question):
            raise ElqError(f"question {number} on the command line is not UTF-8: {question!r}")
    return [Row(number, question) for number, question in enumerate(questions, 1)]


def _check_not_json(line: bytes, name: str | os.PathLike[str]) -> None:
    if not line.lstrip().startswith(b"{"):
        return
    try:
        fields = parse_object(line, name, 1)
    except DataError:
        return
    if "text" in fields:
        message = (
            "found a JSON object with 'text', but this input is read as plain text; give "
            "--input_format=jsonl, or --input_format=txt to link the line as it stands"
        )
        raise DataError(message, name, 1)


def _parse_text(line: bytes, name: str | os.PathLike[str], number: int) -> Row:
    try:
        return Row(number, decode_text(line, name, number))
    except DataError as error:
        return Row(number, error=str(error))


def _parse_document(reader: LineReader, identifier: str) -> Row:
    try:
        text = decode_document(reader)
    except DataError as error:
        return Row(identifier, error=str(error))
    return Row(identifier, text, place=reader.name)


def _parse_object(line: bytes, name: str | os.PathLike[str], number: int) -> Row:
    try:
        record: QuestionRow = _decode(line, name, number)
        spans = None if record.mentions is None else tuple(record.mentions)
        check_spans(spans or (), "mentions", len(record.text), "characters", allow_overlaps=True)
    except DataError as error:
        return Row(_identifier(line, number), error=str(error))
    except ElqError as error:
        return Row(_identifier(line, number), error=str(DataError(str(error), name, number)))
    identifier = number if record.id in (None, "") else record.id
    return Row(identifier, record.text, spans=spans, place=f"{os.fspath(name)}:{number}")


def _identifier(line: bytes, number: int) -> Any:
    """Returns the id of a row that cannot be used, or its number if it has no id."""
    try:
        identifier = parse_object(line, "", number).get("id")
    except DataError:
        return number
    if isinstance(identifier, str) and identifier:
        return made_whole(identifier)
    if isinstance(identifier, float) and math.isfinite(identifier):
        return identifier
    return (
        identifier if isinstance(identifier, int) and not isinstance(identifier, bool) else number
    )
