"""Runs jobs of linking, from a file, a list, stdin or a prompt to a file or stdout."""

from __future__ import annotations

import dataclasses
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from elq_jax.core.errors import ElqError
from elq_jax.core.machine import is_closed
from elq_jax.linking.output import check_output
from elq_jax.questions.rows import open_rows

if TYPE_CHECKING:
    from elq_jax.linking.linker import EntityLinker
    from elq_jax.linking.rows import Tally


@dataclasses.dataclass(frozen=True)
class LinkJob:
    """Says where questions come from, how they are read, and where their links go.

        job = LinkJob(pathlib.Path("questions.jsonl"), pathlib.Path("links.jsonl"))
        tally = job.run(lambda: linker)

    Attributes:
      input: path of a file of texts, or of a folder of them; None: those that `run` is given, or
        stdin.
      output: path of a file for lines of JSON; None: stdout.
      batch_size: number of questions, or windows of longer texts, encoded at a time.
      input_format: form of the input: lines of text or of JSON, or with document the whole file as
        one text. auto goes by the name of the file, reads stdin as lines of text, and of a folder
        each .txt file as a document.
      on_error: action at a line that is not a question: stop, or skip it, which reports it and
        writes {"id", "error"} in its place.
      given_mentions: whether "mentions" of an input line are linked and no others; with
        --nogiven_mentions they are ignored, for instance to try a linker on labelled questions.
      output_format: form of the links: coloured text, which is for stdout alone, lines of JSON, or
        simple-jsonl, in which ELEVANT reads predictions. auto takes text on a terminal and JSON
        elsewhere.
      restart: whether to start over instead of resuming what an interrupted run left.
    """

    input: pathlib.Path | None = None
    output: pathlib.Path | None = None
    batch_size: Annotated[int, msgspec.Meta(ge=1)] = 64
    input_format: Literal["auto", "txt", "jsonl", "document"] = "auto"
    on_error: Literal["stop", "skip"] = "stop"
    given_mentions: bool = True
    output_format: Literal["auto", "text", "json", "simple-jsonl"] = "auto"
    restart: bool = False

    def run(
        self, open_linker: Callable[[], EntityLinker], questions: Sequence[str] = ()
    ) -> Tally | None:
        """Links the questions; on a terminal without questions, asks for them at a prompt.

        Args:
          open_linker: function that opens the linker. It is called after the input was opened,
            since a large linker takes a while.
          questions: questions to link instead of `input` and stdin.

        Returns:
          the counts of what was linked; None after a prompt.

        Raises:
          ElqError: settings exclude each other, the input cannot be read, the output cannot be
            written, or a line is not a question (with `on_error` "stop").
        """
        source, is_prompt, as_text = self._plan(questions)
        reading = self.input_format, self.on_error, self.given_mentions
        with open_rows(source, *reading) as (rows, total):
            if not questions:
                check_output(self.output, self.input or sys.stdin.fileno())
            if total == 0:
                print(f"warning: {self.input} has no questions", file=sys.stderr)
            linker = open_linker()

            from elq_jax.linking.rows import link_all

            console = None
            if as_text:
                from rich.console import Console

                console = Console(highlight=False)
            if is_prompt:
                from elq_jax.linking.terminal import Session

                Session(linker, console).run()
                return None
            return link_all(
                linker,
                rows,
                self.output,
                form="simple-jsonl" if self.output_format == "simple-jsonl" else "json",
                total=total,
                console=console,
                batch_size=self.batch_size,
                on_error=self.on_error,
                restart=self.restart,
            )

    def _plan(self, questions: Sequence[str]) -> tuple[Any, bool, bool]:
        """Returns the source of questions, whether it is a prompt, and whether links are text."""
        source = questions or self.input or (sys.stdin and sys.stdin.buffer)
        from_stdin = source is not None and not questions and not self.input
        is_prompt = from_stdin and sys.stdin.isatty()
        as_text = self.output_format == "text"
        if self.output_format == "auto":
            as_text = self.output is None and sys.stdout.isatty()
        for is_wrong, message in (
            (
                self.output_format == "text" and self.output,
                "--output_format=text, --output: files hold lines of JSON, not text; leave one out",
            ),
            (
                questions and self.input,
                "--input: questions are also given on the command line; give one of them",
            ),
            (
                self.restart and not self.output,
                "--restart: only a run with --output can be resumed or restarted; give --output",
            ),
            (
                source is None,
                "stdin is closed; give questions on the command line, or with --input",
            ),
            (
                not self.output and is_closed(sys.stdout),
                "stdout is closed; give a file with --output",
            ),
            (
                is_prompt and not as_text,
                "no questions; give them on the command line, with --input, or on stdin",
            ),
        ):
            if is_wrong:
                raise ElqError(message)
        return source, is_prompt, as_text
