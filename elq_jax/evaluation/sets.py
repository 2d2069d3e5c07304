"""Sets of labelled questions: each is one row of a table, and counts as much as the others."""

from __future__ import annotations

import collections
import dataclasses
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from elq_jax.core.errors import ElqError
from elq_jax.evaluation.options import PathSet
from elq_jax.questions.read import read_questions
from elq_jax.questions.records import Question

if TYPE_CHECKING:
    from elq_jax.entities.catalogue import Catalogue


@dataclasses.dataclass(frozen=True)
class QuestionSet:
    """Holds labelled questions that are counted together.

    Attributes:
      name: name of the set, from the paths of its files.
      questions: questions of all files of the set.
      files: counts of each file: path, questions, mentions, gold, left_out, skipped.
    """

    name: str
    questions: Sequence[Question]
    files: Sequence[dict[str, Any]]


def read_sets(
    catalogue: Catalogue, path_sets: Sequence[PathSet], on_error: str = "stop", **options: Any
) -> list[QuestionSet]:
    """Reads sets of labelled questions; prints on stderr how their gold was found.

    Args:
      catalogue: catalogue that the gold is looked up in.
      path_sets: path of a file, or paths of several that are pooled, for each set.
      on_error: action at a line that cannot be used, see `read_questions`.
      **options: further arguments of `read_questions`.
    """
    sets = []
    for name, paths in zip(set_names(path_sets), map(paths_of, path_sets), strict=True):
        questions: list[Question] = []
        files = []
        for path in paths:
            of_file, resolution = read_questions(path, catalogue, on_error, **options)
            print(resolution.summary(), file=sys.stderr)
            questions += of_file
            files.append(
                {
                    "path": os.fspath(path),
                    "questions": resolution.questions,
                    "mentions": resolution.mentions,
                    "gold": dict(resolution.counts),
                    "left_out": dict(resolution.left_out),
                    "skipped": len(resolution.skipped),
                }
            )
        sets.append(QuestionSet(name, questions, files))
    return sets


def paths_of(path_set: PathSet) -> tuple[str | os.PathLike[str], ...]:
    """Returns the paths of the files of a set.

    Raises:
      ElqError: there is none.
    """
    is_one = isinstance(path_set, str | os.PathLike)
    paths = (path_set,) if is_one else tuple(path_set)
    if not paths:
        raise ElqError("questions: a set without files; expected at least one path in each")
    return paths


def set_names(path_sets: Sequence[PathSet]) -> list[str]:
    """Names sets by their files: without extensions, and without the folders that all are in.

    Raises:
      ElqError: two sets are the same.

    Example: ["data/a/dev.jsonl", ("data/b/dev.jsonl", "data/b/oov.jsonl.gz")] ->
      ["a/dev", "b/dev+b/oov"].
    """
    sets = [[os.path.abspath(path) for path in paths_of(path_set)] for path_set in path_sets]
    folders = {os.path.dirname(path) for paths in sets for path in paths}
    shared = os.path.commonpath(folders) if folders else ""
    sets = [[os.path.relpath(path, shared) for path in paths] for paths in sets]
    short = [
        "+".join(p.removesuffix(".gz").removesuffix(".jsonl") for p in paths) for paths in sets
    ]
    if len(set(short)) == len(short):
        return short
    names = ["+".join(paths) for paths in sets]
    if len(set(names)) < len(names):
        [name, _] = collections.Counter(names).most_common(1)[0]
        raise ElqError(f"questions: {name} is given twice; expected different sets")
    return names
