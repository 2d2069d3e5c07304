"""Links files of questions to lines of JSON in bounded memory; resumes a stopped run."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from elq_jax.core.errors import ElqError
from elq_jax.core.machine import peak_memory
from elq_jax.linking import arguments, elevant
from elq_jax.linking.lines import json_line, line_piece
from elq_jax.linking.linker import EntityLinker
from elq_jax.linking.links import Link
from elq_jax.linking.output import check_outside, open_output
from elq_jax.linking.parts import Joiner, Part, length_of, parts_of
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
_AT_ONCE = 1 << 15  # characters of long texts that are linked together: about two full batches


@dataclasses.dataclass(frozen=True, slots=True)
class Linked:
    """Holds a row and its links, or of a long row the next of them.

    Attributes:
      row: row of the input.
      links: links in the order of the text; none if the row cannot be used.
      truncated_at: number of the first character that was not read; None if all were read.
      is_first: whether no links of the row came before.
      is_last: whether no more links of the row follow.
      links_before: number of links of the row that came before.
      share_read: share of the row's text that has been read, 0 to 1.
    """

    row: Row
    links: Sequence[Link] = ()
    truncated_at: int | None = None
    is_first: bool = True
    is_last: bool = True
    links_before: int = 0
    share_read: float = 1.0


def link_rows(
    linker: EntityLinker,
    rows: Sequence[Row],
    batch_size: int = 64,
    on_error: OnError = "stop",
) -> list[Linked]:
    """Links the texts of rows; a row with mentions gets links for these mentions only.

    Args:
      linker: linker with the wanted settings.
      rows: rows, as many as fit in memory.
      batch_size: number of questions, or windows of longer texts, encoded at a time.
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
    """Holds parts of rows that the encoder has read.

    Attributes:
      parts: parts; those of rows that cannot be used, or that have mentions, have no text.
      plain: places in `parts` of the others.
      encoded: tokens of their texts.
      vectors: their spans, see `EntityLinker.find_spans`.
    """

    parts: Sequence[Part[Row]]
    plain: Sequence[int]
    encoded: Sequence[EncodedQuestion]
    vectors: Sequence[tuple[SpanVectors, SpanVectors]]


def encode_rows(
    linker: EntityLinker, rows: Sequence[Row], batch_size: int, on_error: OnError
) -> EncodedRows:
    """Runs the question encoder, the first half of `link_rows`; see there."""
    return _encode(linker, [*_parts_of(linker, rows, on_error)], batch_size)


def link_encoded(linker: EntityLinker, rows: EncodedRows, batch_size: int) -> list[Linked]:
    """Finds the entities of the spans, the second half of `link_rows`; see there."""
    return _RowJoiner().add(rows.parts, _links_of(linker, rows, batch_size))


def _parts_of(linker: EntityLinker, rows: Sequence[Row], on_error: OnError) -> Iterator[Part[Row]]:
    """Cuts the texts of rows to parts, after their mentions are checked."""
    rows = _with_checked_spans(linker, rows, on_error)
    pairs = ((row, row.text if _is_plain(row) else "") for row in rows)
    return parts_of(pairs, linker.settings.decoding)


def _is_plain(row: Row) -> bool:
    return row.error is None and row.spans is None


def _encode(linker: EntityLinker, parts: Sequence[Part[Row]], batch_size: int) -> EncodedRows:
    plain = [place for place, part in enumerate(parts) if _is_plain(part.owner)]
    encoded = linker.encode([parts[place].text for place in plain])
    return EncodedRows(parts, plain, encoded, linker.find_spans(encoded, batch_size=batch_size))


def _links_of(
    linker: EntityLinker, chunk: EncodedRows, batch_size: int
) -> list[tuple[list[Link], int | None]]:
    """Returns the links of each part, and where it is cut."""
    results: list[tuple[list[Link], int | None]] = [([], None)] * len(chunk.parts)
    texts = [chunk.parts[place].text for place in chunk.plain]
    scored, _ = linker.score_spans(texts, chunk.encoded, chunk.vectors)
    for place, question, links in zip(
        chunk.plain, chunk.encoded, linker.decode(scored), strict=True
    ):
        results[place] = links, question.truncated_at
    rows = [part.owner for part in chunk.parts]
    known = [place for place, row in enumerate(rows) if row.error is None and not _is_plain(row)]
    texts, spans = [rows[place].text for place in known], [rows[place].spans for place in known]
    for place, links in zip(known, linker.disambiguate(texts, spans, batch_size), strict=True):
        results[place] = links, None
    return results


class _RowJoiner:
    """Joins the links of the parts of rows, which come in the order of the rows."""

    def __init__(self) -> None:
        self._joiner, self._is_begun, self._count = Joiner(), False, 0

    def add(
        self, parts: Sequence[Part[Row]], results: Sequence[tuple[list[Link], int | None]]
    ) -> list[Linked]:
        """Returns rows, the first or last perhaps in part, with the links of their next parts."""
        linked: list[Linked] = []
        links: list[Link] = []
        for number, (part, (own, cut)) in enumerate(zip(parts, results, strict=True), 1):
            links += self._joiner.add(part, own)
            if part.is_last or number == len(parts):
                share = 1.0 if part.is_last else part.place.stop / len(part.owner.text)
                fields = not self._is_begun, part.is_last, self._count, share
                linked.append(Linked(part.owner, links, cut, *fields))
                self._is_begun = not part.is_last
                self._count = 0 if part.is_last else self._count + len(links)
                links = []
        return linked


def _link_chunks(
    linker: EntityLinker,
    rows: Iterable[Row],
    batch_size: int,
    on_error: OnError,
    ahead: int,
    is_written: Callable[[Sequence[Row]], bool] = lambda chunk: False,
) -> Iterator[tuple[Sequence[Row], list[Linked] | None]]:
    """Yields chunks of rows with their `Linked`, or None for chunks whose lines are written.

    A row that is a chunk by itself may be yielded several times, with its next links each time.

    Args:
      linker, rows, batch_size, on_error: arguments of `link_rows`.
      ahead: number of chunks that are read before the links of an earlier one are yielded, for
        `overlapped`: the encoder reads a chunk while the entities of the one before are found.
      is_written: function that says of each chunk in turn whether its lines are written.
    """

    def items() -> Iterator[tuple[Sequence[Row], Sequence[Part[Row]] | None]]:
        for chunk in chunks(rows, batch_size, lambda row: len(row.text)):
            if is_written(chunk):
                yield chunk, None
                continue
            parts_of_chunk = _parts_of(linker, chunk, on_error)
            for parts in chunks(parts_of_chunk, math.inf, length_of, _AT_ONCE):
                yield [part.owner for part in parts if part.is_last], parts

    def encode(item: tuple[Any, Sequence[Part[Row]] | None]) -> EncodedRows | None:
        return None if item[1] is None else _encode(linker, item[1], batch_size)

    def finish(chunk: EncodedRows | None) -> list[tuple[list[Link], int | None]] | None:
        return None if chunk is None else _links_of(linker, chunk, batch_size)

    joiner = _RowJoiner()
    for (chunk, parts), results in overlapped(items(), encode, finish, ahead=ahead):
        yield chunk, None if parts is None else joiner.add(parts, results)


def _with_checked_spans(linker: EntityLinker, rows: Sequence[Row], on_error: OnError) -> list[Row]:
    """Returns the rows; a row with a mention that does not consist of whole tokens has an error."""
    checked = []
    for row in rows:
        if row.error is None and row.spans:
            try:
                encoded, longest = linker.encode([row.text]), linker.max_question_tokens
                arguments.token_bounds([row.text], [row.spans], encoded, longest, [row.id])
            except ElqError as error:
                message = f"{row.place}: {error}" if row.place else str(error)
                if on_error == "stop":
                    raise ElqError(message) from error
                row = Row(row.id, error=message)
        checked.append(row)
    return checked


def to_line(linked: Linked) -> bytes:
    """Returns a row and its links as a line of .jsonl, or of a long row the next piece of the line.

    A line has `id`, `text`, `links`, and `truncated_at` where the text was cut; or `id` and
    `error`. Scores have six decimals.
    """
    row, cut = linked.row, linked.truncated_at
    if row.error is not None:
        return json_line({"id": row.id, "error": row.error})
    links = [_values_of(link) for link in linked.links]
    return line_piece(linked, {"id": row.id, "text": row.text}, "links", links, truncated_at=cut)


def _values_of(link: Link) -> dict[str, Any]:
    values = link.to_dict()
    values["mention_score"] = round(values["mention_score"], 6)
    if values["probability"] is not None:
        values["probability"] = round(values["probability"], 6)
    for part in (values, *values["candidates"]):
        part["score"] = round(part["score"], 6)
    return values


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

    links: list[Link] = []
    for result in linked:
        links += result.links
        if result.row.error is None and result.is_last:
            question = result.row.text, links, 0, result.truncated_at
            links = []
            with console.capture() as shown:
                print_links(console, linker.catalogue, *question)
            yield shown.get().encode(sys.stdout.encoding, sys.stdout.errors)


class Tally:
    """Counts linked questions, and reports on stderr the rows that are not linked.

    Args:
      advance: function called with the number of rows just done, or of long rows with the share,
        for a progress bar.
      names_by_title: whether the lines name entities without a Wikidata id by their titles, so that
        these are counted.
    """

    def __init__(
        self, advance: Callable[[float], None] | None = None, names_by_title: bool = False
    ):
        self._advance = advance or (lambda count: None)
        self._names_by_title, self._titles = names_by_title, 0
        self._linked = self._known = self._done_before = self._skipped = self._cut = 0
        self._share_read = 0.0  # of a row that is not done yet
        self._started = time.monotonic()

    def add(self, rows: Sequence[Row], linked: Sequence[Linked] | None) -> None:
        """Counts a chunk of rows; an argument `progress` of `link_file`."""
        if linked is None:
            self._done_before += len(rows)
            return
        # Rows finished by an earlier run are reported with the first new chunk: the rate covers
        # new work only.
        first = not self._linked and not self._skipped
        done = sum(result.share_read for result in linked) - self._share_read
        self._share_read = 0.0 if linked[-1].is_last else linked[-1].share_read
        self._advance(done + (self._done_before if first else 0))
        for result in linked:
            row = result.row
            if self._names_by_title:
                self._titles += sum(map(elevant.is_named_by_title, result.links))
            if not result.is_last:
                continue
            if row.error is not None:
                self._skipped += 1
                self._say(self._skipped, f"skipped: {row.error}")
                continue
            self._linked += 1
            self._known += row.spans is not None
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
