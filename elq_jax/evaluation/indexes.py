"""Building an index and comparing it with exact search: what `build_index` and notebooks call.

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
from elq_jax.linking.linker import EntityLinker
from elq_jax.questions.align import align_mentions
from elq_jax.questions.read import read_questions
from elq_jax.retrieval import measure
from elq_jax.retrieval.base import INDEXES
from elq_jax.storage import layout


@dataclasses.dataclass(frozen=True)
class Queries:
    """Where the queries to measure with come from; neither file: entity vectors with noise.

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
      settings: of the index's `Settings`; None: all defaults.
      linker: linker directory whose vectors are indexed, or
      embeddings: folder that encode_entities wrote.
      output: folder of the index, replaced if it is there; by default the linker's index/.
      queries: what to measure with; by default entity vectors with noise.
      seconds: how long each speed is measured.

    Returns:
      the report of `measure.compare`, which is in `output`/report.json too.

    Raises:
      ElqError: places or queries that do not go together, or files that cannot be used.
    """
    queries = queries or Queries()
    source, output = _places(index, linker, embeddings, output)
    vectors = Embeddings.open(source)
    drawn, origin = _draw(queries, vectors, linker)
    about = {"embeddings": str(source), "queries": origin, "machine": describe_machine()}
    return measure.compare(vectors, drawn, index, settings, output, seconds=seconds, about=about)


def _places(index: str, linker: Any, embeddings: Any, output: Any) -> tuple[pathlib.Path, Any]:
    """The folder of the embeddings and the one of the index, None for an index without files."""
    has_files = INDEXES.get(index).has_files
    if (linker is None) == (embeddings is None):
        raise ElqError("give either --linker DIR or --embeddings DIR")
    if not has_files and output is not None:
        raise ElqError(f"--output, --index={index}: this search needs no files; give one of them")
    if linker is not None:
        source = pathlib.Path(linker) / layout.EMBEDDINGS
        if not source.is_dir():
            raise ElqError(f"{linker}: not a linker directory (it has no embeddings/)")
        return source, (output or pathlib.Path(linker) / layout.INDEX) if has_files else None
    if output is None and has_files:
        raise ElqError("--embeddings needs --output DIR, the folder of the index")
    return pathlib.Path(embeddings), output


def _draw(queries: Queries, embeddings: Embeddings, linker: Any) -> tuple[np.ndarray, str]:
    """Queries [Q, D] and words for where they are from."""
    if queries.questions is not None and queries.vectors is not None:
        raise ElqError("--questions, --queries: either of them is measured with; give one")
    if queries.questions is not None:
        if linker is None:
            raise ElqError(
                "--questions needs --linker DIR, whose question encoder makes the vectors"
            )
        opened = EntityLinker.from_pretrained(linker, index="exact")
        found, origin = gold_vectors(opened, queries.questions), f"mentions of {queries.questions}"
    elif queries.vectors is not None:
        found, origin = measure.read_queries(queries.vectors, embeddings), f"in {queries.vectors}"
    else:
        return measure.perturbed_rows(embeddings, queries.sample, queries.noise, queries.seed)
    return measure.sample(found, origin, queries.sample, queries.seed)


def gold_vectors(
    linker: EntityLinker, path: str | os.PathLike[str], batch_size: int = 64
) -> np.ndarray:
    """Query vectors [n, D] float32 of the gold mentions of a file, in their order.

    Args:
      linker: linker whose question encoder makes them.
      path: path of labelled questions.
      batch_size: number of questions encoded at a time.

    Raises:
      ElqError: the file cannot be used, or tokens express none of its mentions.
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
    parts = [given for _, given in groups]
    order = np.argsort(np.concatenate([part.question for part in parts]), kind="stable")
    return np.concatenate([part.vectors for part in parts])[order]
