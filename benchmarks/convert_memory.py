"""Measures peak memory and speed of converting a large matrix of entity vectors.

    python -m benchmarks.convert_memory --gib 8 --folder /tmp/convert_memory
    python -m benchmarks.convert_memory --gib 8 --layers 24 --width 1024

generates a model in the original's form and a float32 matrix of --gib GiB in torch's legacy format,
with its catalogue; runs `python -m elq_jax.convert` on them; and prints the time and the largest
resident memory of that program. The second command uses a model of the size of bert-large. The
folder takes the size of the matrix, the same again for the result (int8: a quarter), and 5 GiB for
a model like bert-large. It is removed afterwards.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import resource
import shutil
import subprocess
import sys
import time

import numpy as np
from absl import app, flags

from elq_jax.entities.embeddings import DTYPES
from elq_jax.model.config import BertConfig, ElqConfig
from elq_jax.original.checkpoint import tensor_shapes
from elq_jax.original.torch_files import write_torch_file

_GIB = flags.DEFINE_float("gib", 2.0, "Size of the matrix in GiB.")
_COLUMNS = flags.DEFINE_integer("columns", 1024, "Number of columns of the matrix.")
_LAYERS = flags.DEFINE_integer("layers", 2, "Number of layers of both encoders.")
_WIDTH = flags.DEFINE_integer("width", 128, "Width of both encoders, a multiple of 64.")
_DTYPE = flags.DEFINE_enum("storage_dtype", "int8", DTYPES, "Type of the vectors on disk.")
_FOLDER = flags.DEFINE_string("folder", "convert_memory", "Folder of the files; must not exist.")


def main(arguments: list[str]) -> None:
    """Generates files, converts them, prints the memory, removes the files."""
    del arguments
    folder = pathlib.Path(_FOLDER.value)
    folder.mkdir(parents=True)
    try:
        columns = _COLUMNS.value
        rows = int(_GIB.value * 2**30) // (4 * columns)
        _write_inputs(folder, rows, columns)
        size = (folder / "all.t7").stat().st_size
        started = time.monotonic()
        subprocess.run(
            [
                *(sys.executable, "-m", "elq_jax.convert", "--tokenizer=minilm"),
                *(f"--checkpoint={folder}/elq.bin", f"--params={folder}/params.txt"),
                *(f"--catalogue={folder}/entity.jsonl", f"--embeddings={folder}/all.t7"),
                *(f"--storage_dtype={_DTYPE.value}", f"--output={folder}/linker"),
            ],
            check=True,
        )
        seconds = time.monotonic() - started
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        print(
            f"{rows:,} x {columns} float32 ({size / 2**30:.2f} GiB, legacy format) to "
            f"{_DTYPE.value}, encoders of {_LAYERS.value} layers and width {_WIDTH.value}: "
            f"{seconds:.0f} s, largest resident memory {peak / 2**30:.2f} GiB"
        )
    finally:
        shutil.rmtree(folder)


def _write_inputs(folder: pathlib.Path, rows: int, columns: int) -> None:
    layers, width = _LAYERS.value, _WIDTH.value
    bert = BertConfig(
        num_layers=layers,
        hidden_size=width,
        num_heads=width // 64,
        intermediate_size=4 * width,
    )
    config = ElqConfig(bert, bert)
    parameters = {
        "bert_model": f"google/bert_uncased_L-{layers}_H-{width}_A-{width // 64}",
        "mention_aggregation_type": "all_avg",
        "mention_scoring_method": "qa_linear",
    }
    if columns != width:
        config = dataclasses.replace(
            config,
            mention_aggregation="fl_linear",
            entity_pooling="pooler_linear",
            entity_width=columns,
        )
        parameters |= {"mention_aggregation_type": "fl_linear"}
        parameters |= {"add_linear": True, "out_dim": columns}
    tensors = {name: _random(*shape) for name, shape in tensor_shapes(config).items()}
    write_torch_file(folder / "elq.bin", tensors)
    (folder / "params.txt").write_text(str(parameters))
    write_torch_file(folder / "all.t7", _random(rows, columns))
    with open(folder / "entity.jsonl", "w", encoding="utf-8") as file:
        for row in range(rows):
            text = f" Entity {row} is number {row} of the {rows} of this catalogue."
            file.write(json.dumps({"title": f"Entity {row}", "text": text}) + "\n")


def _random(*shape: int) -> np.ndarray:
    """Makes [n] or [n, m] float32 values; row i is elements i to i + m of one long vector.

    This takes hardly any memory, so this process does not raise the measured peak.
    """
    values = np.random.default_rng(0).normal(scale=0.02, size=sum(shape))
    if len(shape) == 1:
        return values.astype(np.float32)
    rows, columns = shape
    return np.lib.stride_tricks.sliding_window_view(values.astype(np.float32), columns)[:rows]


if __name__ == "__main__":
    app.run(main)
