"""Divides labelled questions by whether training has seen their entities, for docs/quality.md.

    python -m benchmarks.seen_entities --catalogue runs/catalogue --train a.jsonl,b.jsonl \\
        --divide webqsp/dev.jsonl,lcquad1/dev.jsonl --output runs/seen_entities

writes two files for each file of questions. A question whose gold entities are all entities of the
training questions goes to NAME_seen.jsonl, any other to NAME_unseen.jsonl; NAME is the path of the
file with _ for /. Evaluate a linker on both: the second says what it does with entities that it was
not trained on.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from benchmarks import options
from elq_jax.cli.run import define_path, define_paths, run
from elq_jax.core.errors import ElqError
from elq_jax.entities.catalogue import Catalogue
from elq_jax.evaluation.sets import set_names
from elq_jax.questions.read import read_questions
from elq_jax.storage import layout

_CATALOGUE = define_path("catalogue", "Folder that encode_entities wrote.", required=True)
_TRAIN = define_paths("train", "Labelled questions of training (.jsonl).")
_DIVIDE = define_paths("divide", "Labelled questions to divide (.jsonl).")


def divide(
    catalogue: Catalogue,
    train: Sequence[pathlib.Path],
    questions: Sequence[pathlib.Path],
    output: pathlib.Path,
) -> dict[str, int]:
    """Writes the parts of each file of questions; see the module.

    Args:
      catalogue: catalogue in which the entities are looked up.
      train: paths of labelled questions of training.
      questions: paths of labelled questions to divide; a question is a line.
      output: path of the folder for the parts, which must not exist.

    Returns:
      the number of questions of each part, by the name of its file.

    Raises:
      ElqError: a file cannot be read, there are none, or the folder exists.
    """
    if not train or not questions:
        raise ElqError("--train, --divide: expected at least one file each")
    trained = {
        mention.row
        for path in train
        for question in read_questions(path, catalogue)[0]
        for mention in question.mentions
    }
    if output.exists():
        raise ElqError(f"{output}: exists; give another folder")
    output.mkdir(parents=True)
    counts = {}
    for name, path in zip(set_names([str(path) for path in questions]), questions, strict=True):
        lines = [line for line in path.read_bytes().split(b"\n") if line.strip()]
        parts: dict[str, list[bytes]] = {"seen": [], "unseen": []}
        for line, question in zip(lines, read_questions(path, catalogue)[0], strict=True):
            is_seen = all(mention.row in trained for mention in question.mentions)
            parts["seen" if is_seen else "unseen"].append(line + b"\n")
        for part, own in parts.items():
            target = output / f"{name.replace('/', '_')}_{part}.jsonl"
            target.write_bytes(b"".join(own))
            counts[target.name] = len(own)
    return counts


def main(arguments: list[str]) -> None:
    """Divides the questions and prints how many there are in each part."""
    del arguments
    if not options.OUTPUT.value:
        raise ElqError("--output: missing; give a folder for the parts")
    catalogue = Catalogue.open(_CATALOGUE.value / layout.CATALOGUE)
    counts = divide(catalogue, _TRAIN.value, _DIVIDE.value, options.OUTPUT.value)
    for name, count in counts.items():
        print(f"{options.OUTPUT.value / name}: {count:,} questions")


if __name__ == "__main__":
    run(main)
