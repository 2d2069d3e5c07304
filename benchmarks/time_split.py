"""Prepares training without some entities, which are added afterwards.

    python -m benchmarks.time_split --linker runs/webqsp/linker --train_questions a.jsonl,b.jsonl \\
        --divide_questions webqsp/dev.jsonl,lcquad1/dev.jsonl --output runs/time_split

draws a share of the entities by their ids, and writes

    linker               the linker without these entities
    later.jsonl          these entities, as `python -m elq_jax.catalogue add` reads them
    train/NAME.jsonl     the training questions that mention none of them
    later/NAME.jsonl     the questions to divide that mention one of them
    other/NAME.jsonl     the others

NAME is the path of a file with _ for /. What a linker that is trained on train/ with the catalogue
of linker/ does with later/ after later.jsonl was added is what adding without training is worth.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Collection, Sequence

from absl import flags

from benchmarks import options
from elq_jax.cli.run import define_paths, run, start_jax
from elq_jax.core.errors import ElqError
from elq_jax.entities.catalogue import Catalogue, derived_id
from elq_jax.evaluation.sets import set_names
from elq_jax.linking.changes import CatalogueEditor
from elq_jax.questions.read import read_questions
from elq_jax.storage.files import link_or_copy

_SHARE = flags.DEFINE_float("share", 0.1, "Share of the entities that come later.", 0, 1)
_TRAIN = define_paths("train_questions", "Labelled questions of training (.jsonl).")
_DIVIDE = define_paths("divide_questions", "Labelled questions to divide (.jsonl).")


def is_later(own_id: str, share: float) -> bool:
    """Returns whether an entity is among those that come later, by a hash of its id."""
    return int(derived_id(own_id, "")[1:9], 16) < share * 16**8


def split_questions(
    path: pathlib.Path, catalogue: Catalogue, later: Collection[int]
) -> tuple[list[bytes], list[bytes]]:
    """Returns the lines of a file that mention one of the rows `later`, and the others."""
    lines = [line + b"\n" for line in path.read_bytes().split(b"\n") if line.strip()]
    parts: tuple[list[bytes], list[bytes]] = ([], [])
    for line, question in zip(lines, read_questions(path, catalogue)[0], strict=True):
        parts[all(mention.row not in later for mention in question.mentions)].append(line)
    return parts


def split(
    linker: pathlib.Path,
    train: Sequence[pathlib.Path],
    questions: Sequence[pathlib.Path],
    share: float,
    output: pathlib.Path,
) -> list[str]:
    """Writes what the module says, and returns lines that say how much it is.

    Raises:
      ElqError: a file cannot be read, or the folder exists.
    """
    if output.exists():
        raise ElqError(f"{output}: exists; give another folder")
    for name in ("train", "later", "other"):
        (output / name).mkdir(parents=True)
    link_or_copy(linker, output / "linker")
    editor = CatalogueEditor(output / "linker")
    entities = [entity for entity in editor.entities() if is_later(entity["id"], share)]
    own_ids = [entity["id"] for entity in entities]
    with open(output / "later.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(entity) + "\n" for entity in entities)
    catalogue = editor.segments().catalogue
    later = set(catalogue.rows_of_ids(own_ids)[1].tolist())
    lines = [f"{output / 'later.jsonl'}: {len(entities):,} of {len(catalogue):,} entities"]
    for paths, places in ((train, (None, "train")), (questions, ("later", "other"))):
        for name, path in zip(set_names([str(path) for path in paths]), paths, strict=True):
            for place, part in zip(places, split_questions(path, catalogue, later), strict=True):
                if place:
                    target = output / place / f"{name.replace('/', '_')}.jsonl"
                    target.write_bytes(b"".join(part))
                    lines.append(f"{target}: {len(part):,} questions")
    editor.remove(own_ids)
    return lines


def main(arguments: list[str]) -> None:
    """Splits the files of the flags, and prints how many questions there are in each part."""
    del arguments
    if not (options.LINKER.value and options.OUTPUT.value):
        raise ElqError("--linker, --output: missing; give a linker, and a folder for the parts")
    start_jax()
    for line in split(
        options.LINKER.value, _TRAIN.value, _DIVIDE.value, _SHARE.value, options.OUTPUT.value
    ):
        print(line)


if __name__ == "__main__":
    run(main)
