"""Measures time and memory to open a linker with millions of entities and to link a question.

    python -m benchmarks.open_large --rows 5903527 --folder /tmp/open_large

writes a linker directory, unless --folder exists, with made-up titles and texts, random vectors of
width 1024 in int8 (6 GB for 5.9 million) and a question encoder of the size of bert-large with
random weights. It then opens the directory in a fresh process, with none of its files in the page
cache, and links. --scann also builds and measures a ScaNN index. The index is trained briefly,
because random vectors have no structure; recall is not measured (build_index measures it). The
folder is kept for the next call; remove it yourself.
"""

from __future__ import annotations

import json
import os
import pathlib
import resource
import subprocess
import sys
import time

import jax
import numpy as np
from absl import app, flags

from elq_jax.cli.run import start_jax
from elq_jax.entities.build import build_catalogue
from elq_jax.entities.catalogue import Catalogue
from elq_jax.entities.embeddings import DTYPES, EmbeddingsWriter
from elq_jax.linking.linker import EntityLinker
from elq_jax.model.bundle import Model
from elq_jax.model.config import BertConfig, ElqConfig
from elq_jax.model.elq import QuestionEncoder
from elq_jax.storage import layout
from elq_jax.storage.progress import progress
from elq_jax.text.tokenization import Tokenizer

_ROWS = flags.DEFINE_integer("rows", 5_903_527, "Number of entities.")
_WIDTH = flags.DEFINE_integer("width", 1024, "Width of the vectors and the encoder.")
_LAYERS = flags.DEFINE_integer("layers", 24, "Number of layers of the encoder.")
_DTYPE = flags.DEFINE_enum("storage_dtype", "int8", DTYPES, "Type of the vectors on disk.")
_FOLDER = flags.DEFINE_string("folder", "open_large", "Linker directory to make and open.")
_SCANN = flags.DEFINE_bool("scann", False, "Build and measure a ScaNN index too.")
_MEASURE = flags.DEFINE_string("measure", None, "Open --folder with this index and link here.")

_BRIEF_TRAINING = {"training_sample_size": 20_000, "num_leaves": 256, "leaves_to_search": 64}
_QUESTION = "who wrote the first book about entity 4711?"


def main(arguments: list[str]) -> None:
    """Makes the directory and the index if they are missing, and measures each index."""
    del arguments
    folder = pathlib.Path(_FOLDER.value)
    if _MEASURE.value:
        _measure(folder, _MEASURE.value)
        return
    start_jax()
    if not (folder / "config.json").exists():
        _make(folder)
    if _SCANN.value and not (folder / layout.INDEX).exists():
        from elq_jax.entities.embeddings import Embeddings
        from elq_jax.retrieval.scann import ScannIndex, ScannSettings

        started = time.monotonic()
        embeddings = Embeddings.open(folder / layout.EMBEDDINGS)
        settings = ScannSettings(reorder_dtype=_DTYPE.value, **_BRIEF_TRAINING)
        index = ScannIndex.build(embeddings, settings)
        seconds = time.monotonic() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(
            f"ScaNN index built in {seconds:.0f} s; resident {_shown(_resident())}, at most "
            f"{peak:.2f} GiB in all"
        )
        index.save(folder / layout.INDEX)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{_ROWS.value:,} x {_WIDTH.value} {_DTYPE.value}, {size / 2**30:.1f} GiB in all")
    for kind in ("exact", "scann") if _SCANN.value else ("exact",):
        _leave_page_cache(folder)
        command = [sys.executable, "-m", "benchmarks.open_large", f"--folder={folder}"]
        subprocess.run([*command, f"--measure={kind}"], check=True)


def _measure(folder: pathlib.Path, kind: str) -> None:
    start_jax()
    jax.local_devices()
    base = _resident()
    started = time.monotonic()
    linker = EntityLinker.from_pretrained(folder, index=kind, threshold=-np.inf)
    opened = time.monotonic()
    resident = _resident()
    links = linker(_QUESTION)
    first = time.monotonic()
    linker(_QUESTION)
    second = time.monotonic()
    assert links
    print(
        f"{kind}: open {opened - started:.2f} s, first answer {first - opened:.2f} s, second "
        f"{second - first:.2f} s; resident after opening {_shown(resident)} (before: "
        f"{_shown(base)}), after linking {_shown(_resident())}"
    )


def _resident() -> dict[str, float]:
    """Returns GiB of own memory and of mapped files, which the kernel may take back."""
    status = pathlib.Path("/proc/self/status").read_text().splitlines()
    values = dict(line.split(":") for line in status if ":" in line)
    return {
        name: int(values[key].split()[0]) / 2**20
        for name, key in (("own", "RssAnon"), ("files", "RssFile"))
    }


def _shown(resident: dict[str, float]) -> str:
    return " + ".join(f"{value:.2f} GiB {name}" for name, value in resident.items())


def _leave_page_cache(folder: pathlib.Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fdatasync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def _make(folder: pathlib.Path) -> None:
    rng = np.random.default_rng(0)
    rows, width = _ROWS.value, _WIDTH.value
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "entity.jsonl"
    words = np.array(["river", "album", "village", "painter", "film", "genus", "battle", "bridge"])
    with open(source, "w", encoding="utf-8") as file:
        for row in range(rows):
            word = words[row % len(words)]
            text = f" Entity {row} is a {word} near entity {row * 7919 % rows}."
            record = {"title": f"{word.title()} {row}", "text": text, "kb_idx": f"Q{row + 1}"}
            file.write(json.dumps(record) + "\n")
    build_catalogue(source, folder / layout.CATALOGUE)
    source.unlink()
    catalogue = Catalogue.open(folder / layout.CATALOGUE)

    shard_rows = min(rows, 32768)
    block = rng.normal(size=(shard_rows, width)).astype(np.float32)
    writer = EmbeddingsWriter(
        folder / layout.EMBEDDINGS,
        rows,
        width,
        _DTYPE.value,
        shard_rows,
        catalogue.fingerprint,
    )
    with progress("vectors", rows, "entities") as advance:
        for shard in writer.missing_shards():
            start, stop = writer.shard_range(shard)
            writer.write_shard(shard, np.roll(block, shard, axis=1)[: stop - start])
            advance(stop - start)

    bert = BertConfig(
        hidden_size=width,
        num_layers=_LAYERS.value,
        num_heads=width // 64,
        intermediate_size=4 * width,
    )
    config = ElqConfig(bert, bert)
    example = (np.zeros((1, 4), np.int32), np.ones((1, 4), bool), np.zeros((1, 1, 2), np.int32))
    encoder = QuestionEncoder(config)
    shapes = jax.eval_shape(
        lambda *x: encoder.init(jax.random.key(0), *x, method="encode_mentions"), *example
    )
    params = jax.tree.map(
        lambda x: rng.standard_normal(x.shape, np.float32) * np.float32(0.02), shapes["params"]
    )
    tokenizer = Tokenizer.from_pretrained("minilm")
    Model(config, {"question": params}, tokenizer).save(folder)


if __name__ == "__main__":
    app.run(main)
