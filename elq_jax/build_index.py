"""Builds an index over entity vectors and compares it with exact search.

    python -m elq_jax.build_index --linker my_linker
    python -m elq_jax.build_index --embeddings catalogue/embeddings --output catalogue/index

writes a ScaNN index to my_linker/index (or --output), which `link` and `evaluate` then use, opens
it again, and prints how many of the nearest entities it finds (recall against exact search) and how
many queries it answers in a second. The same numbers are in report.json beside the index.

Recall depends on the queries. With --linker, --questions takes labelled questions and measures with
the vectors of their mentions; --queries takes vectors of your own. Without either, entity vectors
with noise added stand in for them.

--kind exact builds nothing, since exact search needs only the vectors: it measures the speed.
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys
import time
from typing import TYPE_CHECKING, Any

from absl import flags

from elq_jax import cli
from elq_jax.core.errors import ElqError
from elq_jax.storage import layout
from elq_jax.storage.files import write_json

if TYPE_CHECKING:
    import numpy as np

    from elq_jax.entities.embeddings import Embeddings

_LINKER = flags.DEFINE_string("linker", None, "Linker directory: its vectors, and its index/.")
_EMBEDDINGS = flags.DEFINE_string("embeddings", None, "Or a folder that encode_entities wrote.")
_OUTPUT = flags.DEFINE_string(
    "output", None, "Folder of the index, replaced if it is there; by default the linker's index/."
)
_KIND = flags.DEFINE_enum("kind", "scann", ("scann", "exact"), "What to build.")
_SCANN_KIND = flags.DEFINE_enum(
    "scann_kind",
    "auto",
    ("auto", "brute_force", "ah", "tree_ah"),
    "All vectors, product codes, or product codes in the leaves of a tree; auto: by the number of "
    "entities (below 20,000, to 100,000, above).",
)
_NUM_LEAVES = flags.DEFINE_integer(
    "num_leaves", None, "Leaves of the tree; by default twice the square root of the entities."
)
_LEAVES_TO_SEARCH = flags.DEFINE_integer(
    "leaves_to_search",
    None,
    "Leaves searched for a query, a quarter by default; more is slower and finds more.",
)
_TRAINING_SAMPLE_SIZE = flags.DEFINE_integer(
    "training_sample_size", 100_000, "Entities that tree and codes are trained on."
)
_DIMENSIONS_PER_BLOCK = flags.DEFINE_integer(
    "dimensions_per_block", 2, "Dimensions per 4-bit code; fewer is slower and finds more."
)
_ANISOTROPIC_THRESHOLD = flags.DEFINE_float(
    "anisotropic_threshold",
    0.2,
    "Weighs errors of the codes along a vector more than across it; nan: off.",
)
_REORDER = flags.DEFINE_integer(
    "reorder", 100, "Entities found by their codes and scored again by their vectors."
)
_REORDER_DTYPE = flags.DEFINE_enum(
    "reorder_dtype",
    "float32",
    ("float32", "bfloat16", "int8"),
    "Vectors for that; the smaller ones save memory and disk and round the scores.",
)
_QUERIES = flags.DEFINE_string(
    "queries", None, "Query vectors to measure with: .npy, float [Q, D]."
)
_QUESTIONS = flags.DEFINE_string(
    "questions", None, "Labelled questions to measure with, .jsonl; needs --linker."
)
_SAMPLE = flags.DEFINE_integer("sample", 1000, "Queries to measure with.", lower_bound=1)
_NOISE = flags.DEFINE_float(
    "noise", 0.7, "Without --queries: length of the noise relative to the vector.", lower_bound=0
)
_SEED = flags.DEFINE_integer("seed", 0, "Of the sample and its noise.")
_SECONDS = flags.DEFINE_float("seconds", 3, "How long each speed is measured.", lower_bound=0)

_SETTINGS = {
    "kind": _SCANN_KIND,
    "num_leaves": _NUM_LEAVES,
    "leaves_to_search": _LEAVES_TO_SEARCH,
    "training_sample_size": _TRAINING_SAMPLE_SIZE,
    "dimensions_per_block": _DIMENSIONS_PER_BLOCK,
    "anisotropic_threshold": _ANISOTROPIC_THRESHOLD,
    "reorder": _REORDER,
    "reorder_dtype": _REORDER_DTYPE,
}


def main(arguments: list[str]) -> None:
    """Builds, saves, opens again, measures, prints and writes the report."""
    del arguments
    cli.use_compilation_cache()
    from elq_jax.core.machine import describe_machine
    from elq_jax.entities.embeddings import Embeddings
    from elq_jax.retrieval.exact import ExactIndex

    source, output = _places()
    embeddings = Embeddings.open(source)
    queries, origin = _queries(embeddings)
    exact, seconds = _timed(lambda: ExactIndex(embeddings))
    report: dict[str, Any] = {
        "embeddings": str(source),
        "rows": embeddings.shape[0],
        "width": embeddings.shape[1],
        "dtype": embeddings.dtype,
        "queries": origin,
        "machine": describe_machine(),
        "exact": {"open_seconds": seconds},
    }
    indexes: dict[str, Any] = {"exact": exact}
    if _KIND.value == "scann":
        indexes["scann"], report["scann"] = _build_scann(embeddings, output)
    _measure(indexes, queries, report)
    if _KIND.value == "scann":
        write_json(output / "report.json", report)
    _print_table(report, [name for name in indexes if name in report])


def _places() -> tuple[pathlib.Path, pathlib.Path]:
    """The folder of the embeddings and the one of the index."""
    if (_LINKER.value is None) == (_EMBEDDINGS.value is None):
        raise ElqError("give either --linker DIR or --embeddings DIR")
    if _LINKER.value is not None:
        linker = pathlib.Path(_LINKER.value)
        source, output = linker / layout.EMBEDDINGS, linker / layout.INDEX
        if not source.is_dir():
            raise ElqError(f"{linker}: not a linker directory (it has no embeddings/)")
    else:
        source, output = pathlib.Path(_EMBEDDINGS.value), None
    if _OUTPUT.value is not None:
        if _KIND.value == "exact":
            raise ElqError("--output, --kind=exact: exact search needs no index; give one of them")
        output = pathlib.Path(_OUTPUT.value)
    elif output is None and _KIND.value == "scann":
        raise ElqError("--embeddings needs --output DIR, the folder of the index")
    return source, output


def _queries(embeddings: Embeddings) -> tuple[np.ndarray, str]:
    """Queries [Q, D] and where they are from."""
    import numpy as np

    from elq_jax.retrieval import measure

    if _QUESTIONS.value is not None and _QUERIES.value is not None:
        raise ElqError("--questions, --queries: either of them is measured with; give one")
    if _QUESTIONS.value is not None:
        queries = _mention_vectors()
        origin = f"mentions of {_QUESTIONS.value}"
    elif _QUERIES.value is not None:
        queries = _read_queries(embeddings)
        origin = f"in {_QUERIES.value}"
    else:
        queries = measure.perturbed_rows(embeddings, _SAMPLE.value, _NOISE.value, _SEED.value)
        return queries, (
            f"{len(queries):,} entity vectors with noise {_NOISE.value:g} times as long added "
            f"(not vectors of mentions), seed {_SEED.value}"
        )
    order = np.random.default_rng(_SEED.value).permutation(len(queries))[: _SAMPLE.value]
    return queries[order], f"{len(order):,} of {len(queries):,} {origin}"


def _mention_vectors() -> np.ndarray:
    """Vectors [Q, D] of the gold mentions of --questions."""
    import numpy as np

    from elq_jax.evaluation.predictions import align_gold
    from elq_jax.linking.linker import EntityLinker
    from elq_jax.questions.read import read_questions

    if _LINKER.value is None:
        raise ElqError("--questions needs --linker DIR, whose question encoder makes the vectors")
    linker = EntityLinker.from_pretrained(_LINKER.value, index="exact")
    questions, _ = read_questions(_QUESTIONS.value, linker.catalogue)
    aligned = align_gold(linker, questions)
    if not any(len(one.bounds) for one in aligned):
        raise ElqError(
            f"--questions {_QUESTIONS.value}: no mention to measure with; expected labelled "
            "questions with mentions of whole words"
        )
    texts = [question.text for question in questions]
    return np.concatenate(linker.vectors_at(texts, [one.bounds for one in aligned]))


def _read_queries(embeddings: Embeddings) -> np.ndarray:
    """The vectors [Q, D] of --queries."""
    import numpy as np

    from elq_jax.retrieval.exact import check_queries

    try:
        queries = np.load(_QUERIES.value, allow_pickle=False)
        queries = np.asarray(queries, np.float32)
    except (OSError, ValueError) as error:
        raise ElqError(
            f"--queries {_QUERIES.value}: not a .npy file of numbers ({error})"
        ) from error
    try:
        queries = check_queries(queries, 1, embeddings.shape)
    except ElqError as error:
        raise ElqError(f"--queries {_QUERIES.value}: {error}") from error
    if not len(queries):
        raise ElqError(f"--queries {_QUERIES.value}: no query in it")
    return queries


def _build_scann(embeddings: Embeddings, output: pathlib.Path) -> tuple[Any, dict[str, Any]]:
    from elq_jax.retrieval.scann import ScannIndex

    settings = {name: flag.value for name, flag in _SETTINGS.items()}
    print(f"building a ScaNN index over {len(embeddings):,} entities ...", file=sys.stderr)
    index, build_seconds = _timed(lambda: ScannIndex.build(embeddings, **settings))
    index.save(output)
    index, open_seconds = _timed(lambda: ScannIndex.open(output, embeddings))
    settings = dataclasses.asdict(index.settings)
    if index.settings.kind != "tree_ah":
        del settings["num_leaves"], settings["leaves_to_search"]
    return index, {
        "settings": {"kind": settings["kind"]} if settings["kind"] == "brute_force" else settings,
        "build_seconds": build_seconds,
        "open_seconds": open_seconds,
        "bytes": sum(path.stat().st_size for path in output.rglob("*") if path.is_file()),
    }


def _timed(function: Any) -> tuple[Any, float]:
    started = time.perf_counter()
    result = function()
    return result, time.perf_counter() - started


def _measure(indexes: dict[str, Any], queries: np.ndarray, report: dict[str, Any]) -> None:
    """Adds recall and speed of every index to the report."""
    from elq_jax.retrieval import measure

    rows = indexes["exact"].shape[0]
    batch_size = min(64, len(queries))
    print(f"searching for the nearest entities of {len(queries):,} queries ...", file=sys.stderr)
    _, nearest = indexes["exact"].search(queries, min(100, rows))
    for name, index in indexes.items():
        print(f"measuring the recall of {name} ...", file=sys.stderr)
        # k as it is used: an index may look harder for more neighbours.
        report[name]["recall"] = {
            str(k): measure.recall(index.search(queries, k)[1], nearest, k)
            for k in (1, 10, 100)
            if k <= rows
        }
        report[name]["queries_per_second"] = speeds = {}
        for size in sorted({1, batch_size}):
            print(f"measuring the speed of {name}, {_how_many(size)} ...", file=sys.stderr)
            speeds[str(size)] = measure.queries_per_second(
                index, queries, size, min(10, rows), _SECONDS.value
            )


def _how_many(size: int) -> str:
    return "one at a time" if size == 1 else f"{size} at a time"


def _print_table(report: dict[str, Any], names: list[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"{report['rows']:,} entities, width {report['width']}, {report['dtype']}",
        caption=f"queries: {report['queries']}\n{report['machine']['cpu']}, "
        f"{report['machine']['cores']} cores, {report['machine']['device']}",
    )
    table.add_column("")
    for name in names:
        kind = report[name].get("settings", {}).get("kind")
        table.add_column(name if kind is None else f"{name} {kind}", justify="right")
    columns = [report[name] for name in names]
    for k in report["exact"]["recall"]:
        table.add_row(f"recall@{k}", *(f"{column['recall'][k]:.4f}" for column in columns))
    for size in reversed(report["exact"]["queries_per_second"]):
        values = (column["queries_per_second"][size] for column in columns)
        table.add_row(f"queries/s, {_how_many(int(size))}", *(f"{value:,.0f}" for value in values))
    table.add_row("seconds to open", *(f"{column['open_seconds']:.2f}" for column in columns))
    table.add_row(
        "seconds to build",
        *(f"{c['build_seconds']:.1f}" if "build_seconds" in c else "-" for c in columns),
    )
    table.add_row(
        "size on disk", *(f"{c['bytes'] / 1e6:,.1f} MB" if "bytes" in c else "-" for c in columns)
    )
    Console().print(table)


if __name__ == "__main__":
    cli.run(main)
