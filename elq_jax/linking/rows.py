"""Files of questions in, lines of links out, in bounded memory; a stopped run is resumed."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from rich.console import Console

from elq_jax.core.errors import ElqError
from elq_jax.core.machine import peak_memory
from elq_jax.linking import arguments
from elq_jax.linking.linker import EntityLinker
from elq_jax.linking.links import Link
from elq_jax.linking.output import open_output
from elq_jax.linking.scoring import BATCHES_IN_FLIGHT
from elq_jax.linking.terminal import print_links
from elq_jax.questions.rows import Row
from elq_jax.storage.resume import stamp

OnError = Literal["stop", "skip"]
_SHOWN = 20  # messages of one kind


@dataclasses.dataclass(frozen=True, slots=True)
class Linked:
    """What became of a row.

    Attributes:
      row: of the input.
      links: in the order of the text; none if the row is no question.
      truncated_at: only the text before this character was read; None if all of it was.
    """

    row: Row
    links: Sequence[Link] = ()
    truncated_at: int | None = None


def chunks(rows: Iterable[Row], batch_size: int) -> Iterator[list[Row]]:
    """Cuts rows into what is linked at a time.

    That is 16 batches, so that questions of a length meet; one question for a `batch_size` of 1,
    so that questions that trickle in are answered at once.
    """
    size = 1 if batch_size == 1 else BATCHES_IN_FLIGHT * batch_size
    rows = iter(rows)
    while chunk := list(itertools.islice(rows, size)):
        yield chunk


def link_rows(
    linker: EntityLinker,
    rows: Sequence[Row],
    batch_size: int = 64,
    on_error: OnError = "stop",
) -> list[Linked]:
    """Links the questions among some rows; where a row gives mentions, only their entities.

    Args:
      linker: linker with the settings wanted.
      rows: rows, as many as fit in memory.
      batch_size: questions encoded at a time.
      on_error: what happens at a row whose mentions no tokens express: "stop", or "skip": it is
        returned with its `error`.

    Returns:
      what became of each row, in their order.

    Raises:
      ElqError: such a row (`on_error="stop"`).
    """
    rows = _with_checked_spans(linker, rows, on_error)
    results: dict[int, Linked] = {i: Linked(row) for i, row in enumerate(rows) if row.error}
    given = [i for i, row in enumerate(rows) if row.error is None and row.spans is not None]
    plain = [i for i, row in enumerate(rows) if row.error is None and row.spans is None]
    scored = linker.score_batch([rows[i].text for i in plain], None, batch_size)
    for i, question, links in zip(plain, scored.encoded, linker.decode(scored), strict=True):
        results[i] = Linked(rows[i], links, question.truncated_at)
    spans = [rows[i].spans for i in given]
    of_given = linker.disambiguate([rows[i].text for i in given], spans, batch_size)
    for i, links in zip(given, of_given, strict=True):
        results[i] = Linked(rows[i], links)
    return [results[i] for i in range(len(rows))]


def _with_checked_spans(linker: EntityLinker, rows: Sequence[Row], on_error: OnError) -> list[Row]:
    """The rows; one whose mentions no tokens express has its error."""
    checked = []
    for row in rows:
        if row.error is None and row.spans:
            try:
                arguments.token_bounds([row.text], [row.spans], linker.encode([row.text]), [row.id])
            except ElqError as error:
                if on_error == "stop":
                    raise
                row = Row(row.id, error=str(error))
        checked.append(row)
    return checked


def to_dict(linked: Linked) -> dict[str, Any]:
    """A row and its links as plain JSON values: a line of the output.

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
        for part in (link, *link["candidates"]):
            part["score"] = round(part["score"], 6)
    values = {"id": row.id, "text": row.text, "links": links}
    if linked.truncated_at is not None:
        values["truncated_at"] = linked.truncated_at
    return values


def to_line(linked: Linked) -> bytes:
    """A line of .jsonl."""
    return json.dumps(to_dict(linked), ensure_ascii=False, allow_nan=False).encode() + b"\n"


def link_file(
    linker: EntityLinker,
    rows: Iterable[Row],
    output: str | os.PathLike[str],
    settings: Mapping[str, Any],
    *,
    batch_size: int = 64,
    on_error: OnError = "stop",
    restart: bool = False,
    progress: Callable[[Sequence[Row], Sequence[Linked] | None], None] | None = None,
) -> None:
    """Links rows to a .jsonl file that appears when it is whole.

    Until then its lines are in `output`.part. A second call with the same rows and settings resumes
    where the first was stopped, and writes the same bytes as a call that was not. A pipe or device
    gets the lines as they come.

    Args:
      linker: linker with the settings wanted.
      rows: rows; may be more than fit in memory.
      output: file to write; a name that ends in .gz is written as gzip.
      settings: everything the lines depend on besides the rows, as JSON values.
      batch_size: questions encoded at a time.
      on_error: as for `link_rows`.
      restart: whether to remove what an earlier call left, instead of resuming.
      progress: function called after each chunk, whose lines are written then, with its rows, and
        what became of them or None if an earlier call had written that.

    Raises:
      ElqError: an earlier call had other rows or other settings, another process is writing the
        same file, or the disk is full.
    """
    with open_output(output, settings | {"batch_size": batch_size}, restart) as lines:
        for chunk in chunks(rows, batch_size):
            linked = None
            if not lines.has(chunk):
                linked = link_rows(linker, chunk, batch_size, on_error)
                lines.write(map(to_line, linked))
            if progress:
                progress(chunk, linked)
        lines.finish()


def link_and_show(
    linker: EntityLinker,
    rows: Iterable[Row],
    console: Console | None = None,
    *,
    batch_size: int = 64,
    on_error: OnError = "stop",
    progress: Callable[[Sequence[Row], Sequence[Linked] | None], None] | None = None,
) -> None:
    """Links rows to stdout, as lines of JSON or as coloured text, until its reader has enough.

    Args:
      linker, rows, batch_size, on_error, progress: as for `link_file`.
      console: console that makes text of links; None: lines of JSON.
    """
    for chunk in chunks(rows, batch_size):
        linked = link_rows(linker, chunk, batch_size, on_error)
        shown = map(to_line, linked) if console is None else _as_text(linker, linked, console)
        has_reader = True
        try:
            sys.stdout.buffer.writelines(shown)
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            # `| head`: nothing is left to be written at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            has_reader = False
        if progress:
            progress(chunk, linked)
        if not has_reader:
            return


def _as_text(linker: EntityLinker, linked: Iterable[Linked], console: Console) -> Iterator[bytes]:
    """What a terminal shows of each question."""
    for result in linked:
        if result.row.error is None:
            question = result.row.text, result.links, 0, result.truncated_at
            with console.capture() as shown:
                print_links(console, linker.catalogue, *question)
            yield shown.get().encode(sys.stdout.encoding, sys.stdout.errors)


class Tally:
    """Counts what is linked, and says on stderr what is not.

    Args:
      advance: function called with the number of rows just done, for a progress bar.
    """

    def __init__(self, advance: Callable[[int], None] | None = None):
        self._advance = advance or (lambda count: None)
        self._linked = self._given = self._done_before = self._skipped = self._cut = 0
        self._started = time.monotonic()

    def add(self, rows: Sequence[Row], linked: Sequence[Linked] | None) -> None:
        """Counts a chunk: `progress` of `link_file`."""
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
            self._given += row.spans is not None
            if result.truncated_at is not None:
                self._cut += 1
                size = f"{result.truncated_at:,} of {len(row.text):,} characters"
                self._say(self._cut, f"question {row.id}: cut, linked up to {size}")

    def summary(self) -> str:
        """Says in a line what was done, how fast, and in how much memory."""
        seconds = time.monotonic() - self._started
        parts = [f"{self._linked:,} questions in {seconds:.1f} s ({self._linked / seconds:,.1f}/s)"]
        if self._given:
            parts.append(f"{self._given:,} of them with their mentions given")
        if self._done_before:
            parts.append(f"{self._done_before:,} rows found done")
        if self._skipped:
            parts.append(f"{self._skipped:,} rows skipped")
        if self._cut:
            parts.append(f"{self._cut:,} questions cut")
        return ", ".join(parts) + f"; peak memory {peak_memory() / 2**30:.2f} GiB"

    @staticmethod
    def _say(number: int, message: str) -> None:
        if number <= _SHOWN:
            print(message, file=sys.stderr)
        if number == _SHOWN:
            print("(more of these are counted, not shown)", file=sys.stderr)


def everything_that_matters(linker: EntityLinker, dtype: str) -> dict[str, Any]:
    """What lines of links depend on besides the input, to be compared when a run is resumed."""
    files = [path for path in sorted(linker.folder.rglob("*")) if path.is_file()]
    return {
        **linker.settings.to_dict(),
        "index": linker.index.name,
        "dtype": dtype,
        "linker": {path.relative_to(linker.folder).as_posix(): stamp(path) for path in files},
    }
