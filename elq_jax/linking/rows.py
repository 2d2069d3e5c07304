"""Files of questions in, lines of links out, in bounded memory; a stopped run is resumed."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from elq_jax.core.errors import ElqError
from elq_jax.linking import arguments
from elq_jax.linking.linker import EntityLinker
from elq_jax.linking.links import Link
from elq_jax.linking.output import open_output
from elq_jax.linking.scoring import BATCHES_IN_FLIGHT
from elq_jax.questions.rows import Row


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
    on_error: Literal["stop", "skip"] = "stop",
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


def _with_checked_spans(
    linker: EntityLinker, rows: Sequence[Row], on_error: Literal["stop", "skip"]
) -> list[Row]:
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
    restart: bool = False,
    progress: Callable[[Sequence[Row], Sequence[Linked] | None], None] | None = None,
) -> None:
    """Links rows to a .jsonl file that appears when it is whole.

    Until then its lines are in `output`.part. A second call with the same rows and settings resumes
    where the first was stopped, and writes the same bytes as a call that was not. A pipe or device
    gets the lines as they come.

    Args:
      linker: with the settings wanted.
      rows: may be more than fit in memory.
      output: file to write; a name that ends in .gz is written as gzip.
      settings: everything the lines depend on besides the rows, as JSON values.
      batch_size: questions encoded at a time.
      restart: whether to remove what an earlier call left, instead of resuming.
      progress: called after each chunk with its rows, and what became of them or None if an earlier
        call had written that.

    Raises:
      ElqError: an earlier call had other rows or other settings, another process is writing the
        same file, or the disk is full.
    """
    with open_output(output, settings | {"batch_size": batch_size}, restart) as lines:
        for chunk in chunks(rows, batch_size):
            linked = None
            if not lines.has(chunk):
                linked = link_rows(linker, chunk, batch_size)
                lines.write(map(to_line, linked))
            if progress:
                progress(chunk, linked)
        lines.finish()
