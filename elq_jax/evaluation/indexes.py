"""Builds an index and compares it with exact search, for `build_index` and for notebooks.

report = build_and_compare(linker="my_linker", queries=Queries(questions="dev.jsonl"))
report["scann"]["recall"]["10"]
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from typing import Any

import numpy as np

from elq_jax.core.errors import ElqError
from elq_jax.core.machine import describe_machine
from elq_jax.entities.embeddings import Embeddings
from elq_jax.entities.segments import first_folder
from elq_jax.linking.linker import EntityLinker
from elq_jax.questions.align import align_mentions
from elq_jax.questions.read import read_questions
from elq_jax.retrieval import measure
from elq_jax.retrieval.base import INDEXES, is_saved
from elq_jax.storage import layout
from elq_jax.storage.files import check_replaceable


@dataclasses.dataclass(frozen=True)
class Queries:
    """Says where the queries to measure with come from.

    Without `questions` and `vectors`, entity vectors with noise are the queries.

    Attributes:
      questions: path of labelled questions, whose mentions are the queries.
      vectors: path of query vectors, .npy, float [Q, D].
      sample: number of queries to measure with.
      noise: length of the noise on entity vectors, relative to the vector's own.
      seed: seed of the sample and of its noise.
    """

    questions: str | os.PathLike[str] | None = None
    vectors: str | os.PathLike[str] | None = None
    sample: int = 1000
    noise: float = 0.7
    seed: int = 0


def build_and_compare(
    index: str = "scann",
    settings: Any = None,
    *,
    linker: str | os.PathLike[str] | None = None,
    embeddings: str | os.PathLike[str] | None = None,
    output: str | os.PathLike[str] | None = None,
    queries: Queries | None = None,
    seconds: float = 3.0,
) -> dict[str, Any]:
    """Builds an index over the vectors of a folder, and compares it with exact search.

    Args:
      index: name in `INDEXES`; an index without files builds nothing.
      settings: settings of the index, an instance of its `Settings`; None: all defaults.
      linker: linker directory whose vectors are indexed.
      embeddings: folder that encode_entities wrote, in place of `linker`.
      output: folder of the index, replaced if it is there; by default the linker's index/.
      queries: source of the queries to measure with; by default entity vectors with noise.
      seconds: time for which each speed is measured.

    Returns:
      the report of `measure.compare`, which is in `output`/report.json too.

    Raises:
      ElqError: arguments exclude each other or are missing, or a file cannot be used.
    """
    queries = queries or Queries()
    source, output = _places(index, linker, embeddings, output)
    if output is not None:  # before an hour of building
        check_replaceable(pathlib.Path(output), "an index", is_saved)
    vectors = Embeddings.open(source)
    drawn, origin = _draw(queries, vectors, linker)
    about = {"embeddings": str(source), "queries": origin, "machine": describe_machine()}
    return measure.compare(vectors, drawn, index, settings, output, seconds=seconds, about=about)


def _places(index: str, linker: Any, embeddings: Any, output: Any) -> tuple[pathlib.Path, Any]:
    """Returns the folders of the embeddings and of the index (None for an index without files)."""
    has_files = INDEXES.get(index).has_files
    if (linker is None) == (embeddings is None):
        problem = "neither is given" if linker is None else "both are given"
        raise ElqError(f"--linker, --embeddings: {problem}; give one of them")
    if not has_files and output is not None:
        raise ElqError(
            f"--output: the search --index={index} has no files to write; leave out --output, or "
            "give another --index"
        )
    if linker is not None:
        first = first_folder(linker)
        source = first / layout.EMBEDDINGS
        if not source.is_dir():
            raise ElqError(f"{linker}: expected a linker directory, but it has no embeddings/")
        return source, (output or first / layout.INDEX) if has_files else None
    if output is None and has_files:
        raise ElqError("--output: missing; --embeddings needs it, to know where the index goes")
    return pathlib.Path(embeddings), output


def _draw(queries: Queries, embeddings: Embeddings, linker: Any) -> tuple[np.ndarray, str]:
    """Returns queries [Q, D], and a description of where they are from."""
    if queries.questions is not None and queries.vectors is not None:
        raise ElqError("--questions, --queries: both are given; give one source of queries")
    if queries.questions is not None:
        if linker is None:
            raise ElqError(
                "--linker: missing; --questions needs it, since its encoder makes the queries"
            )
        vectors = gold_vectors(
            EntityLinker.from_pretrained(linker, index="exact"), queries.questions
        )
        origin = f"mentions of {queries.questions}"
    elif queries.vectors is not None:
        vectors = measure.read_queries(queries.vectors, embeddings)
        origin = f"in {queries.vectors}"
    else:
        return measure.perturbed_rows(embeddings, queries.sample, queries.noise, queries.seed)
    return measure.sample(vectors, origin, queries.sample, queries.seed)


def gold_vectors(
    linker: EntityLinker, path: str | os.PathLike[str], batch_size: int = 64
) -> np.ndarray:
    """Computes the query vectors [n, D] float32 of the gold mentions of a file, in their order.

    Args:
      linker: linker whose question encoder makes the vectors.
      path: path of labelled questions.
      batch_size: number of questions encoded at a time.

    Raises:
      ElqError: the file cannot be used, or none of its mentions consists of whole tokens.
    """
    questions, _ = read_questions(path, linker.catalogue)
    texts = [question.text for question in questions]
    encoded = linker.encode(texts)
    width = linker.config.max_mention_width
    pairs = zip(questions, encoded, strict=True)
    bounds = [align_mentions(*pair, width).bounds for pair in pairs]
    if not any(map(len, bounds)):
        raise ElqError(
            f"{os.fspath(path)}: no mention to measure with; expected labelled questions with "
            "mentions of whole words"
        )
    groups = linker.scorer(encoded, linker.max_question_tokens, batch_size, None, bounds)
    parts = [gold_spans for _, gold_spans in groups]
    order = np.argsort(np.concatenate([part.question for part in parts]), kind="stable")
    return np.concatenate([part.vectors for part in parts])[order]
