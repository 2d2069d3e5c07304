"""Makes labelled questions for a catalogue, so that a linker can be trained without any of its own.

    python -m elq_jax.encode_entities --catalogue entities.jsonl --pooling mean --normalize \\
        --output my_catalogue/
    python -m elq_jax.synthesize --catalogue my_catalogue/ --output questions.jsonl \\
        --dev_output questions_dev.jsonl --fit_output questions_fit.jsonl
    python -m elq_jax.train --config configs/zero_labels.py --workdir runs/mine \\
        --config.catalogue=my_catalogue --config.train_files=questions.jsonl \\
        --config.dev_files=questions_dev.jsonl --config.fit_files=questions_fit.jsonl

Patterns are questions whose mentions are swapped for entities of the same kind: those that come
with this program, or labelled questions of your own. Besides whole questions there are keyword
queries, several names in one question, chat turns, and noise such as typos. A line of the output is

    {"id": "synthetic-train-0", "text": "who wrote dune?", "mentions": [[10, 14]],
     "title": ["Dune (novel)"], "row": [17], "source": {"pattern": "web search:12",
     "shape": "full", "noise": []}}

The same inputs and seed give the same questions; a stopped command, given again, resumes.
"""

from __future__ import annotations

import functools
import sys

from absl import flags

from elq_jax.cli.flags import SettingsFlags
from elq_jax.cli.run import define_path, define_paths, run, start_jax
from elq_jax.questions.settings import SynthesisSettings
from elq_jax.storage.files import output_file

_CATALOGUE = define_path("catalogue", "Folder that encode_entities wrote.", required=True)
_OUTPUT = define_path(
    "output",
    "File of labelled questions to write; .gz means gzip.",
    parse=functools.partial(output_file, may_be_gzip=True),
    required=True,
)
_DEV_OUTPUT = define_path(
    "dev_output",
    "File of development questions to write, from patterns that --output does not use.",
    parse=functools.partial(output_file, may_be_gzip=True),
)
_FIT_OUTPUT = define_path(
    "fit_output",
    "File of questions to write for config.fit_files of train, from patterns that --output does "
    "not use.",
    parse=functools.partial(output_file, may_be_gzip=True),
)
_PATTERNS = define_paths(
    "patterns",
    "Labelled questions (.jsonl), patterns with {kind} for a name (.txt), or shipped (the default)",
)
_PATTERN_ENTITIES = define_paths(
    "pattern_entities",
    "Entities of the patterns (.jsonl with title, text and kind), or shipped (the default)",
)
_RESTART = flags.DEFINE_bool(
    "restart", False, "Start over instead of resuming what an interrupted run left."
)
_SETTINGS = SettingsFlags.define(SynthesisSettings, "synthesis")


def main(arguments: list[str]) -> None:
    """Writes the questions, then prints how many of each shape there are."""
    del arguments
    start_jax()
    from elq_jax.questions.synthesize import synthesize

    counts = synthesize(
        _CATALOGUE.value,
        _OUTPUT.value,
        _SETTINGS.value(),
        _PATTERNS.value,
        _PATTERN_ENTITIES.value,
        _DEV_OUTPUT.value,
        _FIT_OUTPUT.value,
        _RESTART.value,
    )
    shapes = ", ".join(f"{shape} {count:,}" for shape, count in counts.most_common())
    print(f"{_OUTPUT.value}: {counts.total():,} questions ({shapes})", file=sys.stderr)


if __name__ == "__main__":
    run(main, is_resumable=lambda: True)
