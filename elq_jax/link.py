"""Finds the mentions of entities in texts, and links each to an entity of the catalogue.

    python -m elq_jax.link --linker my_linker "who wrote dune?"
    python -m elq_jax.link --linker my_linker --input questions.jsonl --output links.jsonl
    python -m elq_jax.link --linker my_linker --input book.txt --input_format document
    cat questions.txt | python -m elq_jax.link --linker my_linker > links.jsonl
    python -m elq_jax.link --linker my_linker

Texts come from the command line, from --input, or from stdin, one per line, and may be of any
length. On a terminal without texts, a prompt asks for them. With --input_format=document, a whole
file is one text; of a folder, each .txt file is one. A line of a .jsonl file is {"text": ...,
"id": ...}; the id is optional. If it also has "mentions": [[start, end], ...], these mentions are
linked and no others. Links go to --output, or to stdout, as one line of JSON for each text:

    {"id": 1, "text": "who wrote dune?", "links": [{"start": 10, "end": 14, "mention": "dune",
     "title": "Dune (novel)", "wikidata_id": "Q190192", "row": 17, "score": -0.21,
     "mention_score": -0.02, "probability": 0.81, "candidates": [{"title": ..., "score": ...}]}]}

start and end count the characters of the text (end is one past the last), row is the entity's row
in the catalogue, and scores are log-probabilities. probability says how probably the link is right;
it is null for linkers that were trained without probabilities. --min_probability 0.9 leaves out
links that are less sure. On a terminal, links are shown as coloured text. Models that were
converted from the original ELQ link a long text up to the character "truncated_at" only.

With --output_format=simple-jsonl, links are written as ELEVANT reads predictions, a line for each
document of a benchmark (docs/evaluation.md).

With --nil, mentions of something that is not in the catalogue are links whose row and title are
null.

If a run with --output is stopped, the same command resumes it. With --batch_size=1 each question is
answered as soon as it is read.
"""

from __future__ import annotations

import functools
import sys

from elq_jax.cli.flags import LinkerFlags, SettingsFlags
from elq_jax.cli.run import define_path, run
from elq_jax.linking.job import LinkJob
from elq_jax.storage.files import output_file

_LINKER = LinkerFlags.define()
_INPUT = define_path(
    "input", "File of texts to link: .txt, .jsonl, .txt.gz or .jsonl.gz; or a folder of .txt files."
)
_OUTPUT = define_path(
    "output",
    "File for the links, as lines of JSON; compressed if the name ends in .gz. By default they are "
    "printed.",
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
