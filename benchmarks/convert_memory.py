"""Peak memory and speed of converting a large matrix of entity vectors.

    python -m benchmarks.convert_memory --gib 8 --folder /tmp/convert_memory

generates a small model in the original's form and a float32 matrix of so many GiB in torch's legacy
format, with its catalogue; runs `python -m elq_jax.convert` on them; and prints that program's
largest resident memory. The folder needs --gib for the matrix and as much (int8: a quarter) for the
result, and is removed afterwards.
"""

from __future__ import annotations

import json
import pathlib
import resource
import shutil
import subprocess
import sys
import time

import numpy as np
from absl import app, flags

from elq_jax.data.torch_files import write_torch_file
from elq_jax.linking.original import original_shapes
from elq_jax.model.bert import BertConfig
from elq_jax.model.elq import ElqConfig
from elq_jax.retrieval.embeddings import DTYPES

_GIB = flags.DEFINE_float("gib", 2.0, "Size of the matrix.")
_WIDTH = flags.DEFINE_integer("width", 1024, "Columns of the matrix.")
_DTYPE = flags.DEFINE_enum("dtype", "int8", DTYPES, "What to convert it to.")
_FOLDER = flags.DEFINE_string("folder", "convert_memory", "Where the files go; must not exist.")


def main(arguments: list[str]) -> None:
    """Generates, converts, prints, removes."""
    del arguments
    folder = pathlib.Path(_FOLDER.value)
    folder.mkdir(parents=True)
    try:
        rows = int(_GIB.value * 2**30) // (4 * _WIDTH.value)
        _write_inputs(folder, rows, _WIDTH.value)
        size = (folder / "all.t7").stat().st_size
        started = time.monotonic()
        subprocess.run(
            [
                *(sys.executable, "-m", "elq_jax.convert", "--tokenizer=minilm"),
                *(f"--checkpoint={folder}/elq.bin", f"--params={folder}/params.txt"),
                *(f"--catalogue={folder}/entity.jsonl", f"--embeddings={folder}/all.t7"),
                *(f"--dtype={_DTYPE.value}", f"--output={folder}/linker"),
            ],
            check=True,
        )
        seconds = time.monotonic() - started
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        print(
            f"{rows:,} x {_WIDTH.value} float32 ({size / 2**30:.2f} GiB, legacy format) to "
            f"{_DTYPE.value}: {seconds:.0f} s, largest resident memory {peak / 2**30:.2f} GiB"
        )
    finally:
        shutil.rmtree(folder)


def _write_inputs(folder: pathlib.Path, rows: int, width: int) -> None:
    rng = np.random.default_rng(0)
    bert = BertConfig(hidden_size=128, num_layers=2, num_heads=2, intermediate_size=512)
    config = ElqConfig(
        bert,
        bert,
        mention_aggregation="fl_linear",
        entity_pooling="pooler_linear",
        entity_width=width,
    )
    tensors = {
        name: rng.normal(scale=0.02, size=shape).astype(np.float32)
        for name, shape in original_shapes(config).items()
    }
    write_torch_file(folder / "elq.bin", tensors)
    parameters = {
        "bert_model": "google/bert_uncased_L-2_H-128_A-2",
        "mention_aggregation_type": "fl_linear",
        "mention_scoring_method": "qa_linear",
        "add_linear": True,
        "out_dim": width,
    }
    (folder / "params.txt").write_text(str(parameters))
    # Row i is elements i to i + width of one long vector: different rows, and hardly any memory.
    values = rng.normal(size=rows + width - 1).astype(np.float32)
    matrix = np.lib.stride_tricks.sliding_window_view(values, width)
    write_torch_file(folder / "all.t7", matrix)
    with open(folder / "entity.jsonl", "w", encoding="utf-8") as file:
        for row in range(rows):
            text = f" Entity {row} is number {row} of the {rows} of this catalogue."
            file.write(json.dumps({"title": f"Entity {row}", "text": text}) + "\n")


if __name__ == "__main__":
    app.run(main)
