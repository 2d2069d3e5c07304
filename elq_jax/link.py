"""Links the entities of questions.

    python -m elq_jax.link --linker my_linker "who wrote dune?"
    python -m elq_jax.link --linker my_linker --input questions.jsonl --output links.jsonl
    cat questions.txt | python -m elq_jax.link --linker my_linker > links.jsonl
    python -m elq_jax.link --linker my_linker

Questions come from the command line, from --input, or from stdin (a question a line); without any,
on a terminal, they are asked for. An input line of .jsonl is {"text": ..., "id": ...}, the id being
optional. A line with "mentions": [[start, end], ...] gets a link for each of these mentions and
no others. Links go to --output, or to stdout, a line of JSON for each question:

    {"id": 1, "text": "who wrote dune?", "links": [{"start": 10, "end": 14, "mention": "dune",
     "title": "Dune (novel)", "wikidata_id": "Q190192", "row": 17, "score": -0.21,
     "mention_score": -0.02, "candidates": [{"title": ..., "score": ...}, ...]}]}

start and end are characters of the text (end is one past the last), row is a row of the
catalogue, scores are log-probabilities. A question longer than the model reads is linked up to the
character "truncated_at". On a terminal the links are shown as coloured text instead.

A run with --output that is stopped at any moment is resumed when the same command is given again.
With --batch_size=1 each question is answered as soon as it is read.
"""

from __future__ import annotations

import functools
import sys

from absl import flags

from elq_jax.cli.flags import LinkerFlags
from elq_jax.cli.run import define_path, is_closed, run
from elq_jax.core.errors import ElqError
from elq_jax.storage.files import output_file

_FLAGS = LinkerFlags.define()
_INPUT = define_path("input", "Questions: .txt, .jsonl, or either with .gz.")
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
_GIVEN_MENTIONS = flags.DEFINE_bool(
    "given_mentions",
    True,
    "Link the mentions that lines carry; --nogiven_mentions finds mentions in every line, to try a "
    "linker on labelled questions.",
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


def main(arguments: list[str]) -> None:
    """Links the questions of the command line, a file or stdin, or asks for questions."""
    typed, output = arguments[1:], _OUTPUT.value
    source = typed or _INPUT.value or (sys.stdin and sys.stdin.buffer)
    is_interactive = source is not None and not typed and not _INPUT.value and sys.stdin.isatty()
    as_text = _FORMAT.value == "text"
    if _FORMAT.value == "auto":
        as_text = output is None and sys.stdout.isatty()
    for wrong, message in (
        (as_text and output, "--format=text and --output: files are lines of JSON; give one"),
        (typed and _INPUT.value, "questions on the command line and --input: give one of them"),
        (_RESTART.value and not output, "--restart without --output: only a file can be resumed"),
        (source is None, "stdin is closed; give questions on the command line, or with --input"),
        (not output and is_closed(sys.stdout), "stdout is closed; give a file with --output"),
        (is_interactive and not as_text, "no questions; type some, or give --input or stdin"),
    ):
        if wrong:
            raise ElqError(message)

    from elq_jax.linking.output import check_output
    from elq_jax.questions.rows import open_rows

    reading = _INPUT_FORMAT.value, _ON_ERROR.value, _GIVEN_MENTIONS.value
    with open_rows(source, *reading) as (questions, total):
        if not typed:
            check_output(output, _INPUT.value or sys.stdin.fileno())
        if total == 0:
            print(f"{_INPUT.value}: no questions in it", file=sys.stderr)
        linker = _FLAGS.open()

        from rich.console import Console

        from elq_jax.linking import rows, terminal

        console = Console(highlight=False)
        if is_interactive:
            terminal.Session(linker, console).run()
            return
        tally = rows.link_all(
            linker,
            questions,
            output,
            total=total,
            console=console if as_text else None,
            batch_size=_FLAGS.batch_size.value,
            on_error=_ON_ERROR.value,
            restart=_RESTART.value,
        )
        print(tally.summary(), file=sys.stderr)


if __name__ == "__main__":
    run(main, takes_arguments=True, is_resumable=lambda: _OUTPUT.value is not None)
