"""Builds an index over entity vectors and compares it with exact search.

    python -m elq_jax.build_index --linker my_linker
    python -m elq_jax.build_index --embeddings catalogue/embeddings --output catalogue/index

writes a ScaNN index to my_linker/index (or --output), which `link` and `evaluate` then use, opens
it again, and prints how many of the nearest entities it finds (recall against exact search) and how
many queries it answers in a second. The same numbers are in report.json beside the index.

Recall depends on the queries. With --linker, --questions takes labelled questions and measures with
the vectors of their mentions; --queries takes vectors of your own. Without either, entity vectors
with noise added stand in for them.

--index chooses the kind of index; `--index NAME --help` shows the settings of that kind.
--index exact builds nothing, since exact search needs only the vectors: it measures the speed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from absl import flags

from elq_jax.cli.flags import define_index, define_settings_of
from elq_jax.cli.run import define_path, run, start_jax
from elq_jax.core.errors import ElqError
from elq_jax.retrieval import scann  # noqa: F401  the default is known without JAX
from elq_jax.retrieval.base import INDEXES
from elq_jax.storage import layout

if TYPE_CHECKING:
    import pathlib

    import numpy as np

    from elq_jax.entities.embeddings import Embeddings

_LINKER = define_path("linker", "Linker directory whose vectors are indexed.")
_EMBEDDINGS = define_path(
    "embeddings", "Folder of vectors that encode_entities wrote, instead of --linker."
)
_OUTPUT = define_path(
    "output", "Folder of the index, replaced if it is there; by default the linker's index/."
)
_INDEX = define_index("scann")
_QUERIES = define_path("queries", "Query vectors to measure with: .npy, float [Q, D].")
_QUESTIONS = define_path("questions", "Labelled questions to measure with, .jsonl; needs --linker.")
_SAMPLE = flags.DEFINE_integer("sample", 1000, "Number of queries to measure with.", lower_bound=1)
_NOISE = flags.DEFINE_float(
    "noise", 0.7, "Without --queries: length of the noise relative to the vector.", lower_bound=0
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the sample and its noise.")
_SECONDS = flags.DEFINE_float("seconds", 3, "Seconds that each speed is measured.", lower_bound=0)
_SETTINGS = define_settings_of(INDEXES, "index", "scann")


def main(arguments: list[str]) -> None:
    """Builds and saves the index, opens it again, measures it and reports."""
    del arguments
    start_jax()
    from elq_jax.core.machine import describe_machine
    from elq_jax.entities.embeddings import Embeddings
    from elq_jax.evaluation import show
    from elq_jax.retrieval import measure

    source, output = _places()
    embeddings = Embeddings.open(source)
    queries, origin = _queries(embeddings)
    about = {"embeddings": str(source), "queries": origin, "machine": describe_machine()}
    report = measure.compare(
        embeddings,
        queries,
        _INDEX.value,
        _SETTINGS.value(),
        output,
        seconds=_SECONDS.value,
        about=about,
    )
    show.print_comparison(report, _INDEX.value)


def _places() -> tuple[pathlib.Path, pathlib.Path | None]:
    """Returns the folders of embeddings and index; None for an index without files."""
    has_files = INDEXES.get(_INDEX.value).has_files
    if (_LINKER.value is None) == (_EMBEDDINGS.value is None):
        raise ElqError("give either --linker DIR or --embeddings DIR")
    if not has_files and _OUTPUT.value is not None:
        raise ElqError(
            f"--output, --index={_INDEX.value}: this search needs no files; give one of them"
        )
    output = _OUTPUT.value
    if _LINKER.value is not None:
        linker = _LINKER.value
        source = linker / layout.EMBEDDINGS
        if not source.is_dir():
            raise ElqError(f"{linker}: not a linker directory (it has no embeddings/)")
        return source, (output or linker / layout.INDEX) if has_files else None
    if output is None and has_files:
        raise ElqError("--embeddings needs --output DIR, the folder of the index")
    return _EMBEDDINGS.value, output


def _queries(embeddings: Embeddings) -> tuple[np.ndarray, str]:
    """Returns the queries [Q, D] to measure with, and words for where they are from."""
    from elq_jax.evaluation.evaluate import gold_vectors
    from elq_jax.linking.linker import EntityLinker
    from elq_jax.retrieval import measure

    if _QUESTIONS.value is not None and _QUERIES.value is not None:
        raise ElqError("--questions, --queries: either of them is measured with; give one")
    if _QUESTIONS.value is not None and _LINKER.value is None:
        raise ElqError("--questions needs --linker DIR, whose question encoder makes the vectors")
    queries, origin = None, ""
    if _QUESTIONS.value is not None:
        linker = EntityLinker.from_pretrained(_LINKER.value, index="exact")
        queries, origin = gold_vectors(linker, _QUESTIONS.value), f"mentions of {_QUESTIONS.value}"
    elif _QUERIES.value is not None:
        queries, origin = measure.read_queries(_QUERIES.value, embeddings), f"in {_QUERIES.value}"
    if queries is not None:
        return measure.sample(queries, origin, _SAMPLE.value, _SEED.value)
    return measure.perturbed_rows(embeddings, _SAMPLE.value, _NOISE.value, _SEED.value)


if __name__ == "__main__":
    run(main)
