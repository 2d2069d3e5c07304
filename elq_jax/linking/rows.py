"""Links files of questions to lines of JSON in bounded memory; resumes a stopped run."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from elq_jax.core.errors import ElqError
from elq_jax.core.machine import peak_memory
from elq_jax.linking import arguments, elevant
from elq_jax.linking.linker import EntityLinker
from elq_jax.linking.links import Link
from elq_jax.linking.output import check_outside, open_output
from elq_jax.linking.pipeline import overlapped
from elq_jax.linking.scoring import SpanVectors, chunks
from elq_jax.questions.rows import Row
from elq_jax.storage.progress import progress as progress_bar
from elq_jax.storage.resume import stamp
from elq_jax.text.tokenization import EncodedQuestion

if TYPE_CHECKING:
    from rich.console import Console

OnError = Literal["stop", "skip"]
LineForm = Literal["json", "simple-jsonl"]
_SHOWN = 20  # messages of one kind
_AHEAD = 2  # chunks: one that the encoder reads, and one that waits


@dataclasses.dataclass(frozen=True, slots=True)
class Linked:
    """Holds a row and its links.

    Attributes:
      row: row of the input.
      links: links in the order of the text; none if the row cannot be used.
      truncated_at: number of the first character that was not read; None if all were read.
    """

    row: Row
    links: Sequence[Link] = ()
    truncated_at: int | None = None


def link_rows(
    linker: EntityLinker,
    rows: Sequence[Row],
    batch_size: int = 64,
    on_error: OnError = "stop",
) -> list[Linked]:
    """Links the questions of rows; a row with mentions gets links for these mentions only.

    Args:
      linker: linker with the wanted settings.
      rows: rows, as many as fit in memory.
      batch_size: number of questions encoded at a time.
      on_error: action at a row with a mention that does not consist of whole tokens: "stop", or
        "skip" to return the row with its `error`.

    Returns:
      links of each row, in the order of the rows.

    Raises:
      ElqError: a mention does not consist of whole tokens (`on_error="stop"`).
    """
    return link_encoded(linker, encode_rows(linker, rows, batch_size, on_error), batch_size)


@dataclasses.dataclass(frozen=True, slots=True)
class EncodedRows:
    """Holds rows whose questions the encoder has read.

    Attributes:
      rows: rows; those that cannot be used have an error.
      plain: places in `rows` of those without mentions.
      encoded: tokens of their questions.
      parts: their spans, see `EntityLinker.find_spans`.
    """

    rows: Sequence[Row]
    plain: Sequence[int]
    encoded: Sequence[EncodedQuestion]
    parts: Sequence[tuple[SpanVectors, SpanVectors]]


def encode_rows(
    linker: EntityLinker, rows: Sequence[Row], batch_size: int, on_error: OnError
) -> EncodedRows:
    """Runs the question encoder, the first half of `link_rows`; see there."""
    rows = _with_checked_spans(linker, rows, on_error)
    plain = [i for i, row in enumerate(rows) if row.error is None and row.spans is None]
    encoded = linker.encode([rows[i].text for i in plain])
    parts = linker.find_spans(encoded, batch_size=batch_size)
    return EncodedRows(rows, plain, encoded, parts)


def link_encoded(linker: EntityLinker, chunk: EncodedRows, batch_size: int) -> list[Linked]:
    """Finds the entities of the spans, the second half of `link_rows`; see there."""
    rows = chunk.rows
    results: dict[int, Linked] = {i: Linked(row) for i, row in enumerate(rows) if row.error}
    texts = [rows[i].text for i in chunk.plain]
    scored, _ = linker.score_spans(texts, chunk.encoded, chunk.parts)
    for i, question, links in zip(chunk.plain, chunk.encoded, linker.decode(scored), strict=True):
        results[i] = Linked(rows[i], links, question.truncated_at)
    known = [i for i, row in enumerate(rows) if row.error is None and row.spans is not None]
    texts, spans = [rows[i].text for i in known], [rows[i].spans for i in known]
    for i, links in zip(known, linker.disambiguate(texts, spans, batch_size), strict=True):
        results[i] = Linked(rows[i], links)
    return [results[i] for i in range(len(rows))]


def _link_chunks(
    linker: EntityLinker,
    rows: Iterable[Row],
    batch_size: int,
    on_error: OnError,
    ahead: int,
    is_written: Callable[[Sequence[Row]], bool] = lambda chunk: False,
) -> Iterator[tuple[list[Row], list[Linked] | None]]:
    """Yields chunks of rows with their `Linked`, or None for chunks whose lines are written.

    Args:
      linker, rows, batch_size, on_error: arguments of `link_rows`.
      ahead: number of chunks that are read before the links of an earlier one are yielded, for
        `overlapped`: the encoder reads a chunk while the entities of the one before are found.
      is_written: function that says of each chunk in turn whether its lines are written.
    """

    def encode(item: tuple[list[Row], bool]) -> EncodedRows | None:
        chunk, written = item
        return None if written else encode_rows(linker, chunk, batch_size, on_error)

    def finish(chunk: EncodedRows | None) -> list[Linked] | None:
        return None if chunk is None else link_encoded(linker, chunk, batch_size)

    items = ((chunk, is_written(chunk)) for chunk in chunks(rows, batch_size))
    for (chunk, _), linked in overlapped(items, encode, finish, ahead=ahead):
        yield chunk, linked


def _with_checked_spans(linker: EntityLinker, rows: Sequence[Row], on_error: OnError) -> list[Row]:
    """Returns the rows; a row with a mention that does not consist of whole tokens has an error."""
    checked = []
    for row in rows:
        if row.error is None and row.spans:
            try:
                arguments.token_bounds([row.text], [row.spans], linker.encode([row.text]), [row.id])
            except ElqError as error:
                message = f"{row.place}: {error}" if row.place else str(error)
                if on_error == "stop":
                    raise ElqError(message) from error
                row = Row(row.id, error=message)
        checked.append(row)
    return checked


def to_dict(linked: Linked) -> dict[str, Any]:
    """Returns a row and its links as plain JSON values.

    Returns:
      `id`, `text`, `links`, and `truncated_at` where the text was cut; or `id` and `error`. Scores
      have six decimals.
    """
    row = linked.row
    if row.error is not None:
        return {"id": row.id, "error": row.error}
    links = [link.to_dict() for link in linked.links]
    for link in links:
        link["mention_score"] = round(link["mention_score"], 6)
        if link["probability"] is not None:
            link["probability"] = round(link["probability"], 6)
        for part in (link, *link["candidates"]):
            part["score"] = round(part["score"], 6)
    values = {"id": row.id, "text": row.text, "links": links}
    if linked.truncated_at is not None:
        values["truncated_at"] = linked.truncated_at
    return values


def to_line(linked: Linked) -> bytes:
    """Returns a row and its links as a line of .jsonl."""
    # As `json` writes it, several times as fast: with blanks, and not escaped.
    return msgspec.json.format(msgspec.json.encode(to_dict(linked)), indent=0) + b"\n"


LINES: dict[LineForm, Callable[[Linked], bytes]] = {
    "json": to_line,
    "simple-jsonl": elevant.to_line,
}


def link_all(
    linker: EntityLinker,
    rows: Iterable[Row],
    output: str | os.PathLike[str] | None = None,
    *,
    form: LineForm = "json",
    total: int | None = None,
    console: Console | None = None,
    batch_size: int = 64,
    on_error: OnError = "stop",
    restart: bool = False,
) -> Tally:
    """Links rows to a file or to stdout, with a progress bar; resumes an interrupted file.

    Args:
      linker, rows, batch_size, on_error, restart: arguments of `link_file`.
      output: path of the file to write; None: stdout.
      form: form of a line, a name in `LINES`.
      total: number of rows, for the progress bar; None: no bar is shown.
      console: console that shows links as text; None: lines of JSON.

    Returns:
      the counts of what was linked and what was not.
    """
    with_bar = total and console is None
    bar = progress_bar("linking", total, "questions") if with_bar else contextlib.nullcontext()
    with bar as advance:
        tally = Tally(advance, names_by_title=form == "simple-jsonl")
        options = {"batch_size": batch_size, "on_error": on_error, "progress": tally.add}
        options["form"] = form
        options["ahead"] = _AHEAD if total and batch_size > 1 else 0  # A stream may be slow.
        if output is None:
            link_and_show(linker, rows, console, **options)
        else:
            check_outside(output, linker.folder)
            settings = settings_of_links(linker)
            link_file(linker, rows, output, settings, restart=restart, **options)
    return tally


def link_file(
    linker: EntityLinker,
    rows: Iterable[Row],
    output: str | os.PathLike[str],
    settings: Mapping[str, Any],
    *,
    form: LineForm = "json",
    batch_size: int = 64,
    on_error: OnError = "stop",
    restart: bool = False,
    ahead: int = 0,
    progress: Callable[[Sequence[Row], Sequence[Linked] | None], None] | None = None,
) -> None:
    """Links rows to a .jsonl file that appears when it is whole.

    Until then its lines are in `output`.part. A second call with the same rows and settings resumes
    a stopped one; the file is the same to the byte as if nothing had been stopped. A pipe or device
    gets each line at once.

    Args:
      linker: linker with the wanted settings.
      rows: rows; may be more than fit in memory.
      output: path of the file; a name that ends in .gz is written as gzip.
      settings: values that the lines depend on besides the rows and the form, as JSON.
      form: form of a line, a name in `LINES`.
      batch_size: number of questions encoded at a time.
      on_error: action at a row that cannot be linked, see `link_rows`.
      restart: whether to remove the lines of an earlier call instead of resuming it.
      ahead: number of chunks that may be read before the lines of an earlier one are written. With
        some, linking is faster; with 0, questions of a slow stream are answered at once.
      progress: function called after the lines of each chunk are written, with its rows and their
        `Linked`; None in place of these if an earlier call wrote the lines.

    Raises:
      ElqError: an earlier call had other rows or other settings, another process is writing the
        same file, or the disk is full.
    """
    settings = settings | {"batch_size": batch_size}
    if form != "json":
        settings["form"] = form
    with open_output(output, settings, restart) as lines:
        results = _link_chunks(linker, rows, batch_size, on_error, ahead, lines.has)
        with contextlib.closing(results):
            for chunk, linked in results:
                if linked is not None:
                    lines.write(map(LINES[form], linked))
                if progress:
                    progress(chunk, linked)
        lines.finish()


def link_and_show(
    linker: EntityLinker,
    rows: Iterable[Row],
    console: Console | None = None,
    *,
    form: LineForm = "json",
    batch_size: int = 64,
    on_error: OnError = "stop",
    ahead: int = 0,
    progress: Callable[[Sequence[Row], Sequence[Linked] | None], None] | None = None,
) -> None:
    """Links rows to stdout, as lines of JSON or coloured text, until its reader closes it.

    Args:
      linker, rows, form, batch_size, on_error, ahead, progress: arguments of `link_file`.
      console: console that shows links as text; None: lines of JSON.
    """
    has_reader = True
    with contextlib.closing(_link_chunks(linker, rows, batch_size, on_error, ahead)) as results:
        while has_reader and (result := next(results, None)):
            chunk, linked = result
            lines = map(LINES[form], linked)
            shown = lines if console is None else _as_text(linker, linked, console)
            try:
                sys.stdout.buffer.writelines(shown)
                sys.stdout.buffer.flush()
            except BrokenPipeError:
                # The reader, such as `| head`, is gone; Python must not flush to it at exit.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                has_reader = False
            if progress:
                progress(chunk, linked)


def _as_text(linker: EntityLinker, linked: Iterable[Linked], console: Console) -> Iterator[bytes]:
    """Yields the text that a terminal shows of each question."""
    from elq_jax.linking.terminal import print_links

    for result in linked:
        if result.row.error is None:
            question = result.row.text, result.links, 0, result.truncated_at
            with console.capture() as shown:
                print_links(console, linker.catalogue, *question)
            yield shown.get().encode(sys.stdout.encoding, sys.stdout.errors)


class Tally:
    """Counts linked questions, and reports on stderr the rows that are not linked.

    Args:
      advance: function called with the number of rows just done, for a progress bar.
      names_by_title: whether the lines name entities without a Wikidata id by their titles, so that
        these are counted.
    """

    def __init__(self, advance: Callable[[int], None] | None = None, names_by_title: bool = False):
        self._advance = advance or (lambda count: None)
        self._names_by_title, self._titles = names_by_title, 0
        self._linked = self._known = self._done_before = self._skipped = self._cut = 0
        self._started = time.monotonic()

    def add(self, rows: Sequence[Row], linked: Sequence[Linked] | None) -> None:
        """Counts a chunk of rows; an argument `progress` of `link_file`."""
        if linked is None:
            self._done_before += len(rows)
            return
        # Rows finished by an earlier run are reported with the first new chunk: the rate covers
        # new work only.
        first = not self._linked and not self._skipped
        self._advance(len(rows) + (self._done_before if first else 0))
        for result in linked:
            row = result.row
            if row.error is not None:
                self._skipped += 1
                self._say(self._skipped, f"skipped: {row.error}")
                continue
            self._linked += 1
            self._known += row.spans is not None
            if self._names_by_title:
                self._titles += sum(map(elevant.is_named_by_title, result.links))
            if result.truncated_at is not None:
                self._cut += 1
                size = f"{result.truncated_at:,} of {len(row.text):,} characters"
                self._say(self._cut, f"question {row.id}: cut, linked up to {size}")

    def summary(self) -> str:
        """Returns a line with the number of questions and links, speed and memory."""
        seconds = time.monotonic() - self._started
        parts = [f"{self._linked:,} questions in {seconds:.1f} s ({self._linked / seconds:,.1f}/s)"]
        if self._known:
            parts.append(f"{self._known:,} of them with mentions from the input")
        if self._done_before:
            parts.append(f"{self._done_before:,} rows already done by an earlier run")
        if self._skipped:
            parts.append(f"{self._skipped:,} rows skipped")
        if self._cut:
            parts.append(f"{self._cut:,} questions cut")
        if self._titles:
            parts.append(f"{self._titles:,} links to entities without a Wikidata id, by title")
        return ", ".join(parts) + f"; peak memory {peak_memory() / 2**30:.2f} GiB"

    @staticmethod
    def _say(number: int, message: str) -> None:
        if number <= _SHOWN:
            print(message, file=sys.stderr)
        if number == _SHOWN:
            print("(more of these are counted, not shown)", file=sys.stderr)


def settings_of_links(linker: EntityLinker) -> dict[str, Any]:
    """Returns everything that links depend on besides the input, to compare when a run resumes."""
    paths = sorted(linker.folder.rglob("*"))
    files = [path for path in paths if path.is_file() and path.name != ".lock"]
    return {
        **linker.settings.to_dict(),
        "index": linker.index.name,
        "dtype": linker.scorer.dtype,
        "linker": {path.relative_to(linker.folder).as_posix(): stamp(path) for path in files},
    }
