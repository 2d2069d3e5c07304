"""Files of questions in, lines of links out, in bounded memory; a stopped run goes on."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import io
import itertools
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from elq_jax.core.errors import ElqError
from elq_jax.linking.linker import EntityLinker
from elq_jax.linking.links import Link
from elq_jax.questions.rows import Row
from elq_jax.storage.files import atomic_write

BATCHES_PER_CHUNK = 16


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
    size = 1 if batch_size == 1 else BATCHES_PER_CHUNK * batch_size
    rows = iter(rows)
    while chunk := list(itertools.islice(rows, size)):
        yield chunk


def link_rows(linker: EntityLinker, rows: Sequence[Row], batch_size: int = 64) -> list[Linked]:
    """Links the questions among some rows.

    Args:
      linker: with the settings wanted.
      rows: any number that fits in memory.
      batch_size: questions encoded at a time.

    Returns:
      what became of each row, in their order.
    """
    scored = linker.score_batch([row.text for row in rows if row.error is None], None, batch_size)
    results = iter(zip(scored.encoded, linker.decode(scored), strict=True))
    linked = []
    for row in rows:
        if row.error is not None:
            linked.append(Linked(row))
        else:
            encoded, links = next(results)
            linked.append(Linked(row, links, encoded.truncated_at))
    return linked


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


def check_output(
    output: str | os.PathLike[str] | None, source: str | os.PathLike[str] | int
) -> None:
    """Sees to it that writing `output` does not overwrite what is read.

    Args:
      output: the file to write, as for `link_file`; None: there is none.
      source: path, or descriptor, of the input.

    Raises:
      ElqError: they are one file, by whatever name.
    """
    if output is None:
        return
    for path in (pathlib.Path(output), *_part_paths(output)):
        if path.exists() and os.path.samefile(path, source):
            raise ElqError(
                f"{output}: writing it would overwrite the input, which is {path}; "
                "give another output"
            )


def _part_paths(output: str | os.PathLike[str]) -> tuple[pathlib.Path, pathlib.Path]:
    """Where the lines of `output` are until it is whole, and their settings."""
    output = pathlib.Path(output)
    return pathlib.Path(f"{output}.part"), pathlib.Path(f"{output}.part.json")


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

    Until then its lines are in `output`.part. A second call with the same rows and settings goes on
    where the first was stopped, and writes the same bytes as a call that was not.

    Args:
      linker: with the settings wanted.
      rows: may be more than fit in memory.
      output: the file to write.
      settings: everything the lines depend on besides the rows, as JSON values.
      batch_size: questions encoded at a time.
      restart: remove what an earlier call left, instead of going on.
      progress: called after each chunk with its rows, and what became of them or None if an earlier
        call had written that.

    Raises:
      ElqError: an earlier call had other rows or other settings, another process is writing the
        same file, or the disk is full.
    """
    with PartFile(output, settings | {"batch_size": batch_size}, restart) as part:
        for chunk in chunks(rows, batch_size):
            linked = None
            if not part.has(chunk):
                linked = link_rows(linker, chunk, batch_size)
                part.write(linked)
            if progress:
                progress(chunk, linked)
        part.finish()


class PartFile:
    """A file of result lines in the making: `output`.part, and beside it the settings.

    Attributes:
      path: of the lines.
    """

    def __init__(
        self, output: str | os.PathLike[str], settings: Mapping[str, Any], restart: bool = False
    ):
        """Opens or makes `output`.part.

        Args:
          output: the file to be.
          settings: what another run must have in common to go on with the lines of this one.
          restart: remove lines that are there.

        Raises:
          ElqError: the lines there are of other settings, or being written.
        """
        self._output = pathlib.Path(output)
        if self._output.is_dir():
            raise ElqError(f"{output}: is a folder; give the name of a file")
        self.path, self._settings_path = _part_paths(self._output)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file: io.BufferedRandom = open(self.path, "a+b")  # noqa: SIM115 (closed in __exit__)
        self._appending = False
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if restart:
                self._file.truncate(0)
            self._file.seek(0)
            self._check(settings)
        except BlockingIOError as error:
            self._file.close()
            raise ElqError(f"{self.path}: another process is writing it") from error
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> PartFile:
        return self

    def __exit__(self, *_: object) -> None:
        # What could not be written for want of space fails a second time on closing.
        with contextlib.suppress(OSError):
            self._file.close()

    def _check(self, settings: Mapping[str, Any]) -> None:
        """Compares the settings of the lines that are there; keeps the settings of new ones."""
        settings = json.loads(json.dumps(settings))
        if os.fstat(self._file.fileno()).st_size == 0:
            with atomic_write(self._settings_path, "w") as file:
                json.dump(settings, file, indent=2)
            return
        try:
            found = json.loads(self._settings_path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise self._other(f"its settings in {self._settings_path} cannot be read") from error
        for name in sorted({*settings, *found}):
            if found.get(name) != settings.get(name):
                raise self._other(f"{name}: found {found.get(name)}, now {settings.get(name)}")

    def _other(self, reason: str) -> ElqError:
        return ElqError(
            f"{self.path}: the interrupted run that left it is not this one ({reason}); repeat its "
            "command to go on, or start over with --restart"
        )

    def has(self, chunk: Sequence[Row]) -> bool:
        """Whether the next lines are there already; if not all are, the rest is cut off.

        Raises:
          ElqError: the lines are those of other rows.
        """
        if self._appending:
            return False
        start = self._file.tell()
        for row in chunk:
            line = self._file.readline()
            if not line.endswith(b"\n"):
                self._file.truncate(start)
                self._file.seek(0, os.SEEK_END)
                self._appending = True
                return False
            try:
                found = json.loads(line)
                key = found["id"], found.get("text", ""), found.get("error")
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise self._other(f"it holds {line[:40]!r}") from error
            if key != (row.id, row.text if row.error is None else "", row.error):
                raise self._other(f"it has id {found['id']!r} where the input has {row.id!r}")
        return True

    def write(self, linked: Iterable[Linked]) -> None:
        """Appends lines; they are with the operating system when this returns.

        Raises:
          ElqError: the disk is full. What is there stays, to go on from.
        """
        try:
            for one in linked:
                self._file.write(to_line(one))
            self._file.flush()
        except OSError as error:
            raise self._full(error) from error

    def finish(self) -> None:
        """Gives the file its name.

        Raises:
          ElqError: it has more lines than there were rows, or the disk is full.
        """
        if not self._appending and self._file.readline():
            raise self._other("it has more lines than the input has rows")
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._full(error) from error
        os.replace(self.path, self._output)
        self._settings_path.unlink(missing_ok=True)

    def _full(self, error: OSError) -> Exception:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            return error
        return ElqError(
            f"{self.path}: the disk is full; free some space and give the same command again, "
            "it goes on where it stopped"
        )
