"""Measures speed and memory of all work on an accelerator and prints one table.

    python -m benchmarks.gpu

measures, with random weights in BERT's sizes and a random catalogue made on the device: the joint
training step with the exact softmax over the catalogue and with mined negatives, encoding of
entities, linking of questions from text to links, and search. It uses all local devices. The sizes
suit an H200; `--small` shrinks them for a CPU (two cores take two minutes).

    python -m benchmarks.gpu --only "train large|search"

measures the rows whose name contains a match of the regular expression. Each row runs in a process
of its own, so its peak of device memory is its own, and a row that does not fit into memory does
not end the others. Programs are compiled before they are timed. Calls are then queued without
waiting for results, as in a training loop; `link` and `encode ... from text` do wait for them.

ms: time of a step or batch. TFLOP/s: operations of the model (elq_jax/model/flops.py) per second.
MFU: these as a share of the devices' peak in bfloat16. GB/s: bytes of the catalogue, which a search
reads once, per second. Peak GiB: largest use of device memory on any device; without an
accelerator, of the process.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from benchmarks import options
from benchmarks.sizes import BERTS
from elq_jax.cli.run import run, start_jax
from elq_jax.core import devices as devices_lib
from elq_jax.core.errors import ElqError
from elq_jax.core.machine import describe_machine, peak_flops, peak_memory
from elq_jax.entities.build import build_catalogue
from elq_jax.entities.catalogue import Catalogue
from elq_jax.entities.encode import CatalogueEncoder
from elq_jax.evaluation.speed import measure_speed
from elq_jax.linking.linker import EntityLinker
from elq_jax.linking.settings import LinkingSettings
from elq_jax.losses import create_linking_loss
from elq_jax.model import flops
from elq_jax.model.bundle import Model, initial_params
from elq_jax.model.config import BertConfig, ElqConfig
from elq_jax.model.elq import EntityEncoder
from elq_jax.retrieval import exact_index
from elq_jax.retrieval.table import Table
from elq_jax.text.tokenization import Tokenizer
from elq_jax.training.optimizer import create_optimizer, create_train_state
from elq_jax.training.step import Objective, parallel_train_step, train_step_flops

_ROW = flags.DEFINE_string(
    "row", None, "Name of a row to measure in this process and print as JSON."
)

K = 10  # Candidates of a mention.
NEGATIVES = 10
MENTIONS = 2  # Of a question.
DTYPE = "bfloat16"
_PIECE = 65536  # Rows of a random table drawn at a time.


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of the measurements.

    Attributes:
      berts: keys of `BERTS`.
      entities: E, for training and linking.
      batch_size: number of questions of a training step.
      tokens: T of questions.
      encode_batch_size: number of entities encoded at a time.
      entity_tokens: T of entities.
      questions: number of questions to link.
      link_batch_size: number of questions encoded at a time when linking.
      search_entities: E, for search.
      search_width: D, for search.
      search_batch_sizes: numbers of queries searched at a time.
      seconds: number of seconds that each row is timed, roughly.
    """

    berts: tuple[str, ...] = ("base", "large")
    entities: int = 1_000_000
    batch_size: int = 128
    tokens: int = 32
    encode_batch_size: int = 1024
    entity_tokens: int = 128
    questions: int = 8192
    link_batch_size: int = 256
    search_entities: tuple[int, ...] = (1_000_000, 5_903_527)
    search_width: int = 1024
    search_batch_sizes: tuple[int, ...] = (1, 64)
    seconds: float = 5.0


SMALL = Sizes(
    berts=("small",),
    entities=5000,
    batch_size=8,
    tokens=16,
    encode_batch_size=16,
    entity_tokens=32,
    questions=128,
    link_batch_size=32,
    search_entities=(5000, 20_000),
    search_width=128,
    seconds=0.5,
)


@dataclasses.dataclass(frozen=True)
class Measured:
    """A row of the table.

    Attributes:
      seconds: number of seconds of a call.
      rate: number of examples, entities, questions or queries per second.
      unit: name of what the rate counts.
      tokens: number of tokens per second, with padding.
      flops: floating-point operations of the model per second.
      bytes: bytes of the catalogue read per second.
    """

    seconds: float
    rate: float
    unit: str
    tokens: float | None = None
    flops: float | None = None
    bytes: float | None = None


def rows(sizes: Sizes) -> dict[str, Callable[[], Measured]]:
    """Returns the function that measures each row, by the row's name."""
    found: dict[str, Callable[[], Measured]] = {}
    for name in sizes.berts:
        bert = BERTS[name]
        for loss in ("full_catalogue", "hard_negatives"):
            found[f"train {name}, {loss}"] = functools.partial(train, sizes, bert, loss)
        found[f"encode {name}"] = functools.partial(encode, sizes, bert)
        found[f"encode {name}, from text"] = functools.partial(encode_from_text, sizes, bert)
        found[f"link {name}"] = functools.partial(link, sizes, bert)
    for entities in sizes.search_entities:
        for batch_size in sizes.search_batch_sizes:
            name = f"search {entities:,}, {batch_size} at a time"
            found[name] = functools.partial(search, sizes, entities, batch_size)
    return found


def train(sizes: Sizes, bert: BertConfig, linking_loss: str) -> Measured:
    """Measures the joint training step: state donated, dropout, batches on the devices."""
    devices = jax.local_devices()
    config = ElqConfig(bert, bert)
    loss = create_linking_loss({"linking_loss": linking_loss, "num_negatives": NEGATIVES})
    objective = Objective(config, loss, dtype=DTYPE)
    step = parallel_train_step(objective, devices)
    tx = create_optimizer(1e-5)
    state = _on_devices(
        lambda: create_train_state(initial_params(config)["question"], tx), devices, True
    )
    table = random_table(sizes.entities, bert.hidden_size, devices)
    table = Table(table, None, sizes.entities)
    size = -(-sizes.batch_size // len(devices))
    rng = np.random.default_rng(0)
    starts = rng.integers(1, sizes.tokens - 2, (len(devices), size, MENTIONS))
    shape = (len(devices), size, sizes.tokens)
    batch = {
        "input_ids": rng.integers(0, bert.vocab_size, shape).astype(np.int32),
        "mask": np.ones(shape, bool),
        "gold_bounds": np.stack([starts, starts + 1], axis=-1).astype(np.int32),
        "gold_mask": np.ones(starts.shape, bool),
        "gold_rows": rng.integers(0, sizes.entities, starts.shape).astype(np.int32),
        "example_mask": np.ones(shape[:2], bool),
    }
    batch = {name: devices_lib.place(array, devices) for name, array in batch.items()}
    seed = devices_lib.replicate(np.int32(0), devices)

    def call() -> Any:
        nonlocal state
        state, metrics = step(state, batch, table, seed, size * MENTIONS, False)
        return metrics

    seconds = _timed(call, sizes.seconds)
    examples = len(devices) * size
    work = train_step_flops(objective, examples, sizes.tokens, examples * MENTIONS, sizes.entities)
    return Measured(
        seconds, examples / seconds, "examples", examples * sizes.tokens / seconds, work / seconds
    )


def encode(sizes: Sizes, bert: BertConfig) -> Measured:
    """Measures the entity encoder on tokens that are on the devices."""
    devices = jax.local_devices()
    config = ElqConfig(bert, bert, max_entity_tokens=sizes.entity_tokens)
    encoder = EntityEncoder(config, jnp.dtype(DTYPE))
    apply = devices_lib.parallel(encoder.apply, devices, replicated=(0,))
    params = _on_devices(lambda: {"params": initial_params(config)["entity"]}, devices, True)
    size = -(-sizes.encode_batch_size // len(devices))
    shape = (len(devices), size, sizes.entity_tokens)
    ids = np.random.default_rng(0).integers(0, bert.vocab_size, shape).astype(np.int32)
    ids, mask = (devices_lib.place(x, devices) for x in (ids, np.ones(shape, bool)))
    seconds = _timed(lambda: apply(params, ids, mask), sizes.seconds)
    entities = len(devices) * size
    work = flops.entity_flops(config, entities, sizes.entity_tokens)
    tokens = entities * sizes.entity_tokens
    return Measured(seconds, entities / seconds, "entities", tokens / seconds, work / seconds)


def encode_from_text(sizes: Sizes, bert: BertConfig) -> Measured:
    """Measures what `encode_entities` does: text to vectors in the host's memory."""
    config = ElqConfig(bert, bert, max_entity_tokens=sizes.entity_tokens)
    words = _Words(bert)
    encoder = CatalogueEncoder(
        Model(config, initial_params(config), words.tokenizer),
        batch_size=sizes.encode_batch_size,
        dtype=DTYPE,
        devices=jax.local_devices(),
    )
    size = sizes.encode_batch_size
    titles, texts = words.texts(size, 2), words.texts(size, sizes.entity_tokens)
    seconds = _timed(lambda: encoder.encode(titles, texts), sizes.seconds)
    work = flops.entity_flops(config, size, sizes.entity_tokens)
    tokens = size * sizes.entity_tokens
    return Measured(seconds, size / seconds, "entities", tokens / seconds, work / seconds)


def link(sizes: Sizes, bert: BertConfig) -> Measured:
    """Measures `EntityLinker` over an exact index, with two mentions in each question."""
    devices = jax.local_devices()
    config = ElqConfig(bert, bert, max_question_tokens=sizes.tokens)
    words = _Words(bert)
    table = random_table(sizes.entities, bert.hidden_size, devices[:1])
    table = np.asarray(table)[0, : sizes.entities]
    with tempfile.TemporaryDirectory() as folder:
        linker = EntityLinker(
            Model(config, initial_params(config), words.tokenizer),
            _catalogue(pathlib.Path(folder), sizes.entities),
            exact_index(table, devices),
            LinkingSettings(threshold=-np.inf, max_mentions=MENTIONS, num_candidates=K),
            dtype=DTYPE,
            devices=devices,
        )
        texts = words.texts(sizes.questions, sizes.tokens // 3)
        speed = measure_speed(linker, texts, batch_size=sizes.link_batch_size)
    rate = speed["questions_per_second"]
    return Measured(sizes.link_batch_size / rate, rate, "questions")


def search(sizes: Sizes, entities: int, batch_size: int) -> Measured:
    """Measures exact search over a table that is spread over the devices."""
    devices = jax.local_devices()
    table = random_table(entities, sizes.search_width, devices)
    find = searcher(entities, devices)
    size = -(-batch_size // len(devices))
    shape = (len(devices), size, sizes.search_width)
    queries = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    queries = devices_lib.place(queries, devices)
    seconds = _timed(lambda: find(queries, table), sizes.seconds)
    read = entities * sizes.search_width * jnp.dtype(DTYPE).itemsize
    return Measured(seconds, len(devices) * size / seconds, "queries", bytes=read / seconds)


def searcher(entities: int, devices: Sequence[jax.Device]) -> Callable[..., Any]:
    """Compiles a search: queries [P, Q, D], table [P, E_local, D] -> scores, rows [P, Q, K]."""

    def find(queries: jax.Array, values: jax.Array) -> tuple[jax.Array, jax.Array]:
        return Table(values, None, entities).nearest(queries, K)

    return devices_lib.parallel(find, devices)


def random_table(
    entities: int, width: int, devices: Sequence[jax.Device], piece: int = _PIECE
) -> jax.Array:
    """Draws random vectors of length about 0.6 on the devices.

    Args:
      entities: E.
      width: D.
      devices: P.
      piece: number of rows drawn at a time, which bounds the memory beside the result.

    Returns:
      [P, E_local, D] bfloat16, P * E_local >= E; further rows are padding.
    """
    local = -(-entities // len(devices))
    pieces = -(-local // piece)
    shape = (-(-local // pieces), width)
    bound = width**-0.5

    def draw() -> jax.Array:
        key = jax.random.fold_in(
            jax.random.key(0, impl="rbg"), jax.lax.axis_index(devices_lib.AXIS)
        )

        def draw_piece(number: jax.Array) -> jax.Array:
            key_here = jax.random.fold_in(key, number)
            return jax.random.uniform(key_here, shape, DTYPE, -bound, bound)

        return jax.lax.map(draw_piece, jnp.arange(pieces)).reshape(-1, width)

    return _on_devices(draw, devices)


def _on_devices(
    make: Callable[[], Any], devices: Sequence[jax.Device], replicated: bool = False
) -> Any:
    """Returns the result of `make`, made on every device without a copy on the host.

    Args:
      make: function without arguments, in which a device can ask for its place among the others.
      devices: P devices.
      replicated: whether the results of all devices are the same, [...]; otherwise [P, ...].
    """
    numbers = devices_lib.place(np.arange(len(devices)), devices)
    run_make = devices_lib.parallel(lambda _: make(), devices, returns_replicated=replicated)
    return run_make(numbers)


def _timed(call: Callable[[], Any], seconds: float) -> float:
    """Returns the mean seconds of a call, over at least three calls."""
    started = time.perf_counter()
    jax.block_until_ready(call())
    print(f"first call: {time.perf_counter() - started:.1f} s", file=sys.stderr, flush=True)
    started = time.perf_counter()
    jax.block_until_ready(call())
    count = max(3, int(seconds / (time.perf_counter() - started)))
    started = time.perf_counter()
    for _ in range(count):
        result = call()
    jax.block_until_ready(result)
    return (time.perf_counter() - started) / count


class _Words:
    """Holds a vocabulary of made-up words, one token each, as large as that of a BERT."""

    def __init__(self, bert: BertConfig):
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused2]"]
        self._words = [f"w{i}" for i in range(bert.vocab_size - len(special))]
        with tempfile.TemporaryDirectory() as folder:
            vocabulary = "\n".join([*special, *self._words]) + "\n"
            (pathlib.Path(folder) / "vocab.txt").write_text(vocabulary)
            self.tokenizer = Tokenizer.from_pretrained(folder)

    def texts(self, count: int, words: int) -> list[str]:
        """Returns `count` random texts of `words` words each."""
        chosen = np.random.default_rng(0).integers(0, len(self._words), (count, words))
        return [" ".join(self._words[i] for i in row) for row in chosen]


def _catalogue(folder: pathlib.Path, entities: int) -> Catalogue:
    with open(folder / "entities.jsonl", "w", encoding="utf-8") as file:
        for row in range(entities):
            file.write(f'{{"title": "Entity {row}", "text": "Number {row}."}}\n')
    build_catalogue(folder / "entities.jsonl", folder / "catalogue.arrow")
    return Catalogue.open(folder / "catalogue.arrow")


def measure(row: Callable[[], Measured]) -> dict[str, Any]:
    """Measures a row; returns its numbers or {"error": ...}, with machine and peak memory.

    A lack of memory is reported in the row; any other error is raised.
    """
    devices = jax.local_devices()
    try:
        found = dataclasses.asdict(row())
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if isinstance(error, jax.errors.JaxRuntimeError) and not _is_out_of_memory(error):
            raise
        print(error, file=sys.stderr)
        found = {"error": "out of memory"}
    # A CPU backend counts no memory, so the peak of the process is taken there.
    counts = [device.memory_stats() for device in devices]
    peak = peak_flops(devices[0].device_kind, DTYPE)
    return found | {
        "memory": max(count["peak_bytes_in_use"] for count in counts)
        if all(counts)
        else peak_memory(),
        "peak_flops": peak and peak * len(devices),
        "machine": describe_machine() | {"jax": jax.__version__},
    }


def _is_out_of_memory(error: Exception) -> bool:
    return "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower()


HEADER = ("", "ms", "a second", "tokens/s", "TFLOP/s", "MFU", "GB/s", "peak GiB")


def show(name: str, found: dict[str, Any]) -> str:
    """Returns a line of the table (Markdown)."""

    def number(value: float | None, form: str, unit: float = 1) -> str:
        return "" if value is None else format(value / unit, form)

    if "error" in found:
        cells = [name, found["error"], *[""] * 6]
    else:
        used = found["flops"] and found["peak_flops"] and found["flops"] / found["peak_flops"]
        cells = [
            name,
            number(found["seconds"], ",.2f", 1e-3),
            f"{found['rate']:,.0f} {found['unit']}",
            number(found["tokens"], ",.0f"),
            number(found["flops"], ",.3g", 1e12),
            number(used, ".1%"),
            number(found["bytes"], ",.1f", 1e9),
            number(found["memory"], ".2f", 2**30),
        ]
    return "| " + " | ".join(cells) + " |"


def main(arguments: list[str]) -> int:
    """Measures each row in a process of its own and prints it."""
    del arguments
    sizes = SMALL if options.SMALL.value else Sizes()
    if _ROW.value is not None:
        start_jax()
        print(json.dumps(measure(rows(sizes)[_ROW.value])))
        return 0
    names = [name for name in rows(sizes) if re.search(options.ONLY.value, name)]
    if not names:
        raise ElqError(
            f"--only={options.ONLY.value}: matches no row; the rows are {', '.join(rows(sizes))}"
        )
    print(f"| {' | '.join(HEADER)} |\n| --- |{' ---: |' * (len(HEADER) - 1)}", flush=True)
    machine, failed = None, 0
    for name in names:
        print(f"{name} ...", file=sys.stderr, flush=True)
        found = _in_own_process(name)
        print(show(name, found), flush=True)
        machine = found.get("machine", machine)
        failed += "machine" not in found
    if machine:
        print(
            f"\n{machine['num_devices']} x {machine['device']}, {machine['cpu']}, "
            f"{machine['cores']} cores, jax {machine['jax']}. {DTYPE}; training: {sizes.entities:,}"
            f" entities, batch {sizes.batch_size}, {sizes.tokens} tokens; encoding: batch "
            f"{sizes.encode_batch_size}, {sizes.entity_tokens} tokens; linking: {sizes.entities:,} "
            f"entities, batch {sizes.link_batch_size}; search: width {sizes.search_width}, k = {K}."
        )
    return int(failed > 0)


def _in_own_process(name: str) -> dict[str, Any]:
    # This process must not open the devices, or it would take the memory that the row needs.
    command = [
        sys.executable,
        "-m",
        "benchmarks.gpu",
        f"--row={name}",
        f"--small={options.SMALL.value}",
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        return {"error": f"failed, exit status {done.returncode}"}
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    run(main)
