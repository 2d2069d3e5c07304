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

from elq_jax.cli.flags import LinkerFlags, SettingsFlags
from elq_jax.cli.run import define_path, run
from elq_jax.linking.job import LinkJob
from elq_jax.storage.files import output_file

_LINKER = LinkerFlags.define()
_INPUT = define_path("input", "Questions: .txt, .jsonl, or either with .gz.")
_OUTPUT = define_path(
    "output",
    "Write lines of JSON here instead of to stdout; .gz means gzip.",
    parse=functools.partial(output_file, may_be_gzip=True),
)
_JOB = SettingsFlags.define(
    LinkJob, "link", input=_INPUT, output=_OUTPUT, batch_size=_LINKER.batch_size
)


def main(arguments: list[str]) -> None:
    """Links the questions of the command line, a file or stdin, or asks for questions."""
    tally = _JOB.value().run(_LINKER.open, arguments[1:])
    if tally is not None:
        print(tally.summary(), file=sys.stderr)


if __name__ == "__main__":
    run(main, takes_arguments=True, is_resumable=lambda: _OUTPUT.value is not None)
