"""Says what linking in bfloat16 instead of float32 changes, for docs/results.md.

    python -m benchmarks.precision --linker my_linker --sets webqsp/dev.jsonl,lcquad1/dev.jsonl

links the questions of each set in both number formats, and prints how many links are not the same
(other characters, another entity, or in one format only), F1, and the cosines of the vectors of
the gold mentions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import rich.table
from rich.console import Console

from benchmarks.options import LINKER, SETS
from elq_jax.cli.run import run, start_jax
from elq_jax.core import machine
from elq_jax.core.errors import ElqError
from elq_jax.evaluation.predict import predict
from elq_jax.evaluation.sets import QuestionSet, read_sets
from elq_jax.linking.linker import EntityLinker
from elq_jax.questions.align import align_mentions

DTYPES = "float32", "bfloat16"


class Difference(NamedTuple):
    """What differs between linking in float32 and in bfloat16.

    Attributes:
      links: number of links in float32.
      changed: number of links in float32 that are not among those in bfloat16, or the other way
        round if these are more.
      weak: weak F1 in float32 and in bfloat16.
      strong: strong F1 in float32 and in bfloat16.
      cosines: [n] cosines of the vectors of the gold mentions.
    """

    links: int
    changed: int
    weak: tuple[float, float]
    strong: tuple[float, float]
    cosines: np.ndarray


def compare(linkers: Sequence[EntityLinker], part: QuestionSet) -> Difference:
    """Links questions in both formats.

    Args:
      linkers: the linker in float32 and in bfloat16.
      part: labelled questions.
    """
    threshold = linkers[0].settings.threshold
    evaluations = [predict(linker, part.questions, threshold) for linker in linkers]
    links = [
        {
            (number, link.start, link.end, link.row)
            for number, result in enumerate(evaluation.results)
            for link in result.predicted
        }
        for evaluation in evaluations
    ]
    counts = [evaluation.counts(threshold) for evaluation in evaluations]
    vectors = [gold_vectors(linker, part) for linker in linkers]
    norms = [np.linalg.norm(each, axis=1) for each in vectors]
    return Difference(
        len(links[0]),
        max(len(links[0] - links[1]), len(links[1] - links[0])),
        (counts[0].weak_f1, counts[1].weak_f1),
        (counts[0].strong_f1, counts[1].strong_f1),
        (vectors[0] * vectors[1]).sum(axis=1) / (norms[0] * norms[1]),
    )


def gold_vectors(linker: EntityLinker, part: QuestionSet) -> np.ndarray:
    """Returns the vectors of the gold mentions of questions, [n, D] float32."""
    encoded = linker.encode([question.text for question in part.questions])
    width = linker.config.max_mention_width
    bounds = [
        align_mentions(question, tokens, width).bounds
        for question, tokens in zip(part.questions, encoded, strict=True)
    ]
    longest = linker.max_question_tokens
    found = [known.in_order() for _, known in linker.scorer(encoded, longest, 64, known=bounds)]
    order = np.argsort(np.concatenate([spans.question for spans in found]), kind="stable")
    return np.concatenate([spans.vectors for spans in found])[order]


def main(arguments: list[str]) -> None:
    """Prints a row for each set."""
    del arguments
    if not LINKER.value or not SETS.value:
        raise ElqError("--linker, --sets: expected a value for each")
    start_jax()
    linkers = [EntityLinker.from_pretrained(LINKER.value, dtype=dtype) for dtype in DTYPES]
    columns = ("", "links", "changed", "weak F1", "strong F1", "cosine: median", "least")
    table = rich.table.Table(*columns, caption=machine.cpu_model())
    for part in read_sets(linkers[0].catalogue, SETS.value):
        result = compare(linkers, part)
        table.add_row(
            part.name,
            f"{result.links:,}",
            f"{result.changed} ({result.changed / max(result.links, 1):.2%})",
            "{:.4f} {:.4f}".format(*result.weak),
            "{:.4f} {:.4f}".format(*result.strong),
            f"{np.median(result.cosines):.6f}",
            f"{result.cosines.min():.6f}",
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    run(main)
