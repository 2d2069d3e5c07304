"""Builds an index, which finds entities faster, and compares it with exact search.

    python -m elq_jax.build_index --linker my_linker
    python -m elq_jax.build_index --embeddings catalogue/embeddings --output catalogue/index

writes a ScaNN index to my_linker/index (or --output), which link and evaluate then use. It prints
which share of the nearest entities the index finds (its recall, against exact search) and how many
queries it answers in a second. The same numbers are in report.json beside the index.

Recall depends on the queries. --questions takes labelled questions and measures with the vectors of
their mentions; --queries takes vectors of your own. Without either, the queries are entity vectors
with noise added.

--index chooses the kind of index, and `--index NAME --help` shows the settings of that kind.
--index exact builds nothing, since exact search needs only the vectors; it measures the speed.
"""

from __future__ import annotations

from absl import flags

from elq_jax.cli.flags import define_index, define_settings_of
from elq_jax.cli.run import define_path, run, start_jax
from elq_jax.retrieval import scann  # noqa: F401 (registers the default index, without JAX)
from elq_jax.retrieval.base import INDEXES

_LINKER = define_path("linker", "Linker directory whose vectors are indexed.")
_EMBEDDINGS = define_path(
    "embeddings", "Folder of entity vectors that encode_entities wrote, in place of --linker."
)
_OUTPUT = define_path(
    "output", "Folder for the index; an index there is replaced. By default the linker's index/."
)
_INDEX = define_index("scann")
_QUERIES = define_path("queries", "File of query vectors to measure with: .npy, float [Q, D].")
_QUESTIONS = define_path("questions", "Labelled questions to measure with, .jsonl; needs --linker.")
_SAMPLE = flags.DEFINE_integer("sample", 1000, "Number of queries to measure with.", lower_bound=1)
_NOISE = flags.DEFINE_float(
    "noise",
    0.7,
    "Length of the noise that is added to entity vectors, relative to that of the vector.",
    lower_bound=0,
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the sample and of its noise.")
_SECONDS = flags.DEFINE_float(
    "seconds", 3, "Number of seconds for which each speed is measured.", lower_bound=0
)
_SETTINGS = define_settings_of(INDEXES, "index", "scann")


def main(arguments: list[str]) -> None:
    """Builds and saves the index, opens it again, measures it and reports."""
    del arguments
    start_jax()
    from elq_jax.evaluation import show
    from elq_jax.evaluation.indexes import Queries, build_and_compare

    report = build_and_compare(
        _INDEX.value,
        _SETTINGS.value(),
        linker=_LINKER.value,
        embeddings=_EMBEDDINGS.value,
        output=_OUTPUT.value,
        queries=Queries(_QUESTIONS.value, _QUERIES.value, _SAMPLE.value, _NOISE.value, _SEED.value),
        seconds=_SECONDS.value,
    )
    show.print_comparison(report, _INDEX.value)


if __name__ == "__main__":
    run(main)
