"""Links the entities of questions.

    python -m elq_jax.link --linker my_linker "who wrote dune?"
    python -m elq_jax.link --linker my_linker --input questions.jsonl --output links.jsonl
    cat questions.txt | python -m elq_jax.link --linker my_linker > links.jsonl
    python -m elq_jax.link --linker my_linker

Questions come from the command line, from --input, or from stdin (a question a line); without any,
on a terminal, they are asked for. An input line of .jsonl is {"text": ..., "id": ...}, the id being
optional. Links go to --output, or to stdout, a line of JSON for each question:

    {"id": 1, "text": "who wrote dune?", "links": [{"start": 10, "end": 14, "mention": "dune",
     "title": "Dune (novel)", "wikidata_id": "Q190192", "row": 17, "score": -0.21,
     "mention_score": -0.02, "candidates": [{"title": ..., "score": ...}, ...]}]}

start and end are characters of the text (end is one past the last), row is a row of the
catalogue, scores are log-probabilities. "truncated_at" is there if the question was longer than the
model reads. On a terminal the links are shown as coloured text instead.

A run with --output that is stopped at any moment is resumed when the same command is given again.
With --batch_size=1 each question is answered as soon as it is read.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

from elq_jax.cli.flags import LinkerFlags
from elq_jax.cli.run import define_path, is_closed, run
from elq_jax.core.errors import ElqError
from elq_jax.core.machine import peak_memory
from elq_jax.storage.files import output_file
from elq_jax.storage.progress import progress
from elq_jax.storage.resume import stamp

if TYPE_CHECKING:
    from elq_jax.linking.linker import EntityLinker
    from elq_jax.linking.rows import Linked
    from elq_jax.questions.rows import Row

_FLAGS = LinkerFlags.define()
_INPUT = define_path("input", "Questions: .txt, .jsonl or .jsonl.gz.")
_INPUT_FORMAT = flags.DEFINE_enum(
    "input_format",
    "auto",
    ("auto", "txt", "jsonl"),
    "How the input is read; auto: by its name, stdin as txt.",
)
_OUTPUT = define_path(
    "output",
    "Write lines of JSON here instead of to stdout; .gz means gzip.",
    parse=functools.partial(output_file, may_be_gzip=True),
)
_ON_ERROR = flags.DEFINE_enum(
    "on_error",
    "stop",
    ("stop", "skip"),
    'A line that is no question stops the program, or is reported and gets an output line {"id", '
    '"error"}.',
)
_FORMAT = flags.DEFINE_enum(
    "format",
    "auto",
    ("auto", "text", "json"),
    "How links are shown on stdout; auto: text on a terminal, else lines of JSON.",
)
_RESTART = flags.DEFINE_bool(
    "restart", False, "Start over instead of resuming what an interrupted run left."
)

_SHOWN = 20  # messages of one kind


def main(arguments: list[str]) -> None:
    """Links what is given, or asks for questions."""
    typed, as_text = arguments[1:], _FORMAT.value == "text"
    if _FORMAT.value == "auto":
        as_text = _OUTPUT.value is None and sys.stdout.isatty()
    if as_text and _OUTPUT.value is not None:
        raise ElqError("--format=text and --output: files are lines of JSON; give one of them")
    if typed and _INPUT.value is not None:
        raise ElqError("questions on the command line and --input: give one of them")
    if _RESTART.value and _OUTPUT.value is None:
        raise ElqError("--restart without --output: only a run that writes a file can be restarted")
    from_stdin = not typed and _INPUT.value is None
    if from_stdin and sys.stdin is None:
        raise ElqError("stdin is closed; give questions on the command line, or with --input")
    if _OUTPUT.value is None and is_closed(sys.stdout):
        raise ElqError("stdout is closed; give a file with --output")
    interactive = from_stdin and sys.stdin.isatty()
    if interactive and not as_text:
        raise ElqError("no questions; give some on the command line, with --input, or on stdin")
    with _open_rows(typed) as (rows, total):
        linker = _FLAGS.open()
        if interactive:
            _ask(linker)
        else:
            _link(linker, rows, total, as_text)


@contextlib.contextmanager
def _open_rows(typed: Sequence[str]) -> Iterator[tuple[Iterable[Row], int | None]]:
    """The rows of the input, and how many they are if that is known."""
    from elq_jax.linking import output
    from elq_jax.questions import rows as inputs

    is_guess = _INPUT_FORMAT.value == "auto"
    if typed:
        yield inputs.rows_of_arguments(typed), len(typed)
    elif _INPUT.value is None:
        form = "txt" if is_guess else _INPUT_FORMAT.value
        output.check_output(_OUTPUT.value, sys.stdin.fileno())
        read = inputs.read_rows(sys.stdin.buffer, "stdin", form, _ON_ERROR.value, is_guess=is_guess)
        yield read, None
    else:
        path = _INPUT.value
        form = inputs.form_of(path) if is_guess else _INPUT_FORMAT.value
        if not path.exists() or path.is_dir():
            raise ElqError(f"{path}: no such file; expected questions")
        output.check_output(_OUTPUT.value, path)
        # A pipe can be read only once.
        total = inputs.count_rows(path, form) if path.is_file() else None
        if total == 0:
            print(f"{path}: no questions in it", file=sys.stderr)
        with open(path, "rb") as source:
            rows = inputs.read_rows(source, path, form, _ON_ERROR.value, is_guess=is_guess)
            yield rows, total


def _ask(linker: EntityLinker) -> None:
    import readline  # noqa: F401 (gives `input` a history and editing keys)

    from rich.console import Console

    from elq_jax.linking.terminal import Session

    Session(linker, Console(highlight=False)).run()


def _link(linker: EntityLinker, rows: Iterable[Row], total: int | None, as_text: bool) -> None:
    from elq_jax.linking import rows as batch

    batch_size = _FLAGS.batch_size.value
    with_bar = total and not as_text
    showing = progress("linking", total, "questions") if with_bar else contextlib.nullcontext()
    with showing as advance:
        tally = _Tally(advance)
        if _OUTPUT.value is not None:
            batch.link_file(
                linker,
                rows,
                _OUTPUT.value,
                _everything_that_matters(linker),
                batch_size=batch_size,
                restart=_RESTART.value,
                progress=tally.add,
            )
        else:
            for chunk in batch.chunks(rows, batch_size):
                linked = batch.link_rows(linker, chunk, batch_size)
                tally.add(chunk, linked)
                shown = _text(linker, linked) if as_text else map(batch.to_line, linked)
                try:
                    sys.stdout.buffer.writelines(shown)
                    sys.stdout.buffer.flush()
                except BrokenPipeError:
                    # The reader has enough (`| head`); nothing is left to be written at exit.
                    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                    break
    print(tally.summary(), file=sys.stderr)


def _text(linker: EntityLinker, linked: Iterable[Linked]) -> Iterator[bytes]:
    """What a terminal shows of each question."""
    from rich.console import Console

    from elq_jax.linking import terminal

    console = Console(highlight=False)
    for one in linked:
        if one.row.error is None:
            with console.capture() as shown:
                terminal.print_links(
                    console, linker.catalogue, one.row.text, one.links, 0, one.truncated_at
                )
            yield shown.get().encode(sys.stdout.encoding, sys.stdout.errors)


def _everything_that_matters(linker: EntityLinker) -> dict[str, Any]:
    """What the output depends on besides the input, to be compared when a run is resumed."""
    folder = pathlib.Path(_FLAGS.linker.value)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {
        **linker.settings.to_dict(),
        "index": linker.index.name,
        "dtype": _FLAGS.dtype.value,
        "linker": {path.relative_to(folder).as_posix(): stamp(path) for path in files},
    }


class _Tally:
    """Counts what is linked, and says on stderr what is not."""

    def __init__(self, advance: Callable[[int], None] | None = None):
        self._advance = advance or (lambda count: None)
        self._linked = self._found = self._skipped = self._cut = 0
        self._started = time.monotonic()

    def add(self, rows: Sequence[Row], linked: Sequence[Linked] | None) -> None:
        if linked is None:
            self._found += len(rows)
            return
        # With the first chunk go those found done, which say nothing of the rate.
        self._advance(len(rows) + (0 if self._linked or self._skipped else self._found))
        for one in linked:
            if one.row.error is not None:
                self._skipped += 1
                self._say(self._skipped, f"skipped: {one.row.error}")
                continue
            self._linked += 1
            if one.truncated_at is not None:
                self._cut += 1
                size = f"{one.truncated_at:,} of {len(one.row.text):,} characters"
                self._say(self._cut, f"question {one.row.id}: cut, linked up to {size}")

    def summary(self) -> str:
        seconds = time.monotonic() - self._started
        parts = [f"{self._linked:,} questions in {seconds:.1f} s ({self._linked / seconds:,.1f}/s)"]
        if self._found:
            parts.append(f"{self._found:,} rows found done")
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


if __name__ == "__main__":
    run(main, takes_arguments=True, is_resumable=lambda: _OUTPUT.value is not None)
