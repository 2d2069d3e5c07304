"""Measures on a CPU what each number format and each way of doing the work costs.

    python -m benchmarks.cpu
    python -m benchmarks.cpu --linker runs/webqsp/linker \\
        --questions data/questions/webqsp/test.jsonl

measures single matrix products, the encoder at several shapes, exact search, the training step and
its parts, and, with --linker, linking of questions: by a program that is started for one question,
in batches, and one at a time. The encoder has random weights in the sizes of MiniLM, which are as
fast as trained ones, and search has random vectors. Where they are installed, PyTorch with
transformers computes the same encoder with the same weights, and FAISS searches the same vectors.
`--small` shrinks everything, and `--only` measures the work whose name contains a match of a
regular expression, such as "encode|link".

The ways of one work run in turn, `--rounds` times after a first pass that compiles, so that other
load on the machine slows all of them. Printed are medians: ms of a call; what is done per second;
the ratio to the first way, by rounds; and for products and encoders the share of the speed of one
large product in float32 or bfloat16 in the same rounds, the highest that this machine shows.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import options
from benchmarks.sizes import BERTS
from elq_jax.cli.run import run, start_jax
from elq_jax.core import devices as devices_lib
from elq_jax.core import machine
from elq_jax.core.errors import ElqError
from elq_jax.linking.linker import EntityLinker
from elq_jax.linking.scoring import Scorer
from elq_jax.losses import create_linking_loss
from elq_jax.model import flops
from elq_jax.model.bert import BertEncoder
from elq_jax.model.bundle import initial_params
from elq_jax.model.config import BertConfig, ElqConfig
from elq_jax.model.parameters import cast_frozen, huggingface_names
from elq_jax.questions.rows import open_rows
from elq_jax.retrieval.exact import ExactIndex
from elq_jax.retrieval.table import Table
from elq_jax.text.padding import pad_tokens
from elq_jax.training.optimizer import create_optimizer, create_train_state
from elq_jax.training.step import Objective, parallel_train_step

Way = Callable[[], Any]
K = NEGATIVES = 10
MENTIONS = 2  # of a question


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of the measurements.

    Attributes:
      bert: key of `BERTS`.
      shapes: batches (B, T) that are encoded.
      large_product: (n, k, m) of the product whose speed counts as the highest.
      entities: E, number of vectors that are searched.
      queries: numbers of queries of a search.
      training: (B, T) of the training step.
    """

    bert: str = "minilm"
    shapes: tuple[tuple[int, int], ...] = ((32, 48), (64, 16), (64, 10), (1, 16))
    large_product: tuple[int, int, int] = (2048, 1536, 1536)
    entities: int = 214_958
    queries: tuple[int, ...] = (1, 64, 256)
    training: tuple[int, int] = (64, 16)


SMALL = Sizes("small", ((4, 8), (1, 8)), (64, 64, 64), 20_000, (1, 64), (4, 8))


@dataclasses.dataclass(frozen=True)
class Work:
    """One kind of work, and the ways in which it is done.

    Attributes:
      name: name of the work.
      unit: name of what is counted.
      count: number of these in a call.
      ways: functions that do the work and wait for the result, by name; the first one is what the
        others are compared with.
      flops: floating-point operations of a call; 0 where the share of the highest speed says
        nothing.
    """

    name: str
    unit: str
    count: float
    ways: dict[str, Way]
    flops: float = 0.0


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
      work: name of the work.
      way: name of the way.
      seconds: median over the rounds.
      rate: number of units per second.
      unit: name of what the rate counts.
      ratio: median ratio of the first way's time to this one's.
      share: median share of the speed of a large product; None where it is not measured.
    """

    work: str
    way: str
    seconds: float
    rate: float
    unit: str
    ratio: float
    share: float | None


def measure(work: Work, rounds: int, large: Work) -> list[Row]:
    """Measures all ways of one kind of work in turn.

    Args:
      work: work to measure.
      rounds: number of rounds.
      large: large products in float32 and bfloat16, in the same rounds where `work` has `flops`.
    """
    ways = dict(work.ways)
    if work.flops:
        ways |= {f"large {name}": way for name, way in large.ways.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way()
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
    first = seconds[next(iter(ways))]
    rows = []
    for name in work.ways:
        times, share = seconds[name], None
        if work.flops:
            limit = seconds["large " + ("bfloat16" if "bfloat16" in name else "float32")]
            shares = [
                work.flops / own / (large.flops / most)
                for own, most in zip(times, limit, strict=True)
            ]
            share = statistics.median(shares)
        median = statistics.median(times)
        ratio = statistics.median(a / b for a, b in zip(first, times, strict=True))
        rows.append(Row(work.name, name, median, work.count / median, work.unit, ratio, share))
    return rows


def product(shape: tuple[int, int, int]) -> Work:
    """Returns the work of one matrix product [n, k] x [k, m]; GFLOP are counted."""
    n, k, m = shape
    random = np.random.default_rng(0)
    x, y = (jnp.asarray(random.normal(size=s), jnp.float32) for s in ((n, k), (k, m)))
    rounded = x.astype(jnp.bfloat16), y.astype(jnp.bfloat16)
    multiply = jax.jit(jnp.matmul, static_argnames="preferred_element_type")
    wide = functools.partial(multiply, preferred_element_type=jnp.float32)
    ways = {
        "float32": lambda: wide(x, y).block_until_ready(),
        "bfloat16": lambda: wide(*rounded).block_until_ready(),
        "bfloat16 to bfloat16": lambda: multiply(*rounded).block_until_ready(),
    }
    operations = 2.0 * n * k * m
    return Work(f"product [{n}, {k}] x [{k}, {m}]", "GFLOP", operations / 1e9, ways, operations)


def encoder(bert: BertConfig, batch: int, tokens: int) -> Work:
    """Returns the work of encoding texts of one length, with frozen weights."""
    params = jax.device_get(initial_params(ElqConfig(bert, bert))["entity"]["bert"])
    ids = np.random.default_rng(0).integers(1, bert.vocab_size, (batch, tokens)).astype(np.int32)
    ids, mask = jnp.asarray(ids), jnp.ones((batch, tokens), bool)

    def way(dtype: str) -> Way:
        apply = jax.jit(BertEncoder(bert, jnp.dtype(dtype)).apply)
        frozen = jax.device_put({"params": cast_frozen(params, dtype)})
        return lambda: apply(frozen, ids, mask).block_until_ready()

    ways = {dtype: way(dtype) for dtype in ("float32", "bfloat16")}
    if _has("torch") and _has("transformers"):
        ways |= {
            f"torch {dtype}": torch_encoder(bert, params, [list(np.array(ids))], dtype)
            for dtype in ("float32", "bfloat16")
        }
    operations = flops.bert_flops(bert, batch, tokens)
    return Work(f"encode {batch} x {tokens} tokens", "texts", batch, ways, operations)


def torch_encoder(
    bert: BertConfig, params: Any, batches: Sequence[Sequence[np.ndarray]], dtype: str
) -> Way:
    """Returns the same encoder in PyTorch, with the same weights, on batches of tokens."""
    import torch
    from transformers import BertConfig as TorchConfig
    from transformers import BertModel

    model = BertModel(
        TorchConfig(
            vocab_size=bert.vocab_size,
            hidden_size=bert.hidden_size,
            num_hidden_layers=bert.num_layers,
            num_attention_heads=bert.num_heads,
            intermediate_size=bert.intermediate_size,
            layer_norm_eps=bert.layer_norm_eps,
        ),
        add_pooling_layer=False,
    ).eval()
    state = {}
    for name, (path, is_transposed) in huggingface_names(bert).items():
        array = functools.reduce(lambda tree, key: tree[key], path, params)
        state[name] = torch.tensor(np.array(array.T if is_transposed else array))
    model.load_state_dict(state, strict=False)
    model = model.to(getattr(torch, dtype))

    def tensors(batch: Sequence[np.ndarray]) -> dict[str, Any]:
        lengths = [len(ids) for ids in batch]
        padded, mask = pad_tokens(batch, max(lengths), len(batch), 0)
        if min(lengths) == max(lengths):
            return {"input_ids": torch.tensor(padded, dtype=torch.long)}
        mask = torch.tensor(mask, dtype=torch.long)
        return {"input_ids": torch.tensor(padded, dtype=torch.long), "attention_mask": mask}

    def way() -> Any:
        with torch.inference_mode():
            for batch in batches:
                output = model(**tensors(batch)).last_hidden_state
        return output

    return way


def real_texts(linker: EntityLinker, texts: Sequence[str]) -> Work:
    """Returns the work of encoding tokenised questions of all lengths, in batches of 64.

    PyTorch gets them sorted by length, and pads each batch to its longest.
    """
    encoded = linker.encode(texts)
    first_tokens = [np.ones((1, 2), np.int64) for _ in encoded]  # One vector of each is read.
    longest = max(len(question.ids) for question in encoded)

    def way(dtype: str) -> Way:
        scorer = Scorer(linker.model, dtype, jax.local_devices()[:1])

        def encode() -> None:
            for _ in scorer(encoded, longest, 64, known=first_tokens):
                pass

        return encode

    dtypes = ("float32", "bfloat16")
    ways = {dtype: way(dtype) for dtype in dtypes}
    if _has("torch") and _has("transformers"):
        ids = sorted((question.ids for question in encoded), key=len)
        batches = [ids[start : start + 64] for start in range(0, len(ids), 64)]
        params = jax.device_get(linker.model.params["question"]["bert"])
        bert = linker.config.question_bert
        ways |= {f"torch {dtype}": torch_encoder(bert, params, batches, dtype) for dtype in dtypes}
    return Work("encode the questions", "questions", len(encoded), ways)


def searches(sizes: Sizes) -> Iterator[Work]:
    """Yields the work of exact search for several numbers of queries."""
    random = np.random.default_rng(0)
    width = BERTS[sizes.bert].hidden_size
    table = random.normal(size=(sizes.entities, width)).astype(np.float32)
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    on_device = jnp.asarray(table)
    multiply = jax.jit(jnp.matmul)
    index = {name: ExactIndex(table, products=name) for name in ("float32", "bfloat16")}
    for count in sizes.queries:
        # As near to a row as the vector of a mention is: an inner product of 0.7.
        queries = table[random.integers(0, len(table), count)]
        noise = random.normal(size=queries.shape).astype(np.float32) / np.sqrt(width)
        queries = (queries + noise).astype(np.float32)
        columns = jnp.asarray(queries.T)
        ways = {
            "float32": functools.partial(index["float32"].search, queries, K),
            "bfloat16, then float32": functools.partial(index["bfloat16"].search, queries, K),
            "product alone, float32": functools.partial(_wait, multiply, on_device, columns),
        }
        ways |= faiss_searches(table, queries)
        yield Work(f"search, {count} at a time", "queries", count, ways)


def faiss_searches(table: np.ndarray, queries: np.ndarray) -> dict[str, Way]:
    """Returns searches by FAISS, where it is installed."""
    if not _has("faiss"):
        return {}
    import faiss

    flat = faiss.IndexFlatIP(table.shape[1])
    flat.add(table)
    graph = faiss.IndexHNSWFlat(table.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
    graph.add(table)
    return {
        "FAISS flat": functools.partial(flat.search, queries, K),
        "FAISS HNSW": functools.partial(graph.search, queries, K),
    }


def training(sizes: Sizes) -> Iterator[Work]:
    """Yields the work of the joint training step with mined negatives, and of its parts."""
    bert, (batch, tokens) = BERTS[sizes.bert], sizes.training
    config = ElqConfig(bert, bert)
    device = jax.local_devices()[:1]
    random = np.random.default_rng(0)
    vectors = random.normal(size=(sizes.entities, bert.hidden_size)).astype(np.float32)
    starts = random.integers(1, tokens - 2, (batch, MENTIONS))
    arrays = {
        "input_ids": random.integers(1, bert.vocab_size, (batch, tokens)).astype(np.int32),
        "mask": np.ones((batch, tokens), bool),
        "gold_bounds": np.stack([starts, starts + 1], axis=-1).astype(np.int32),
        "gold_mask": np.ones((batch, MENTIONS), bool),
        "gold_rows": random.integers(0, sizes.entities, (batch, MENTIONS)).astype(np.int32),
    }
    parts = devices_lib.place(devices_lib.split(arrays, device), device)
    seed = devices_lib.replicate(np.int32(0), device)
    tx = create_optimizer(1e-5)
    params = jax.device_get(initial_params(config)["question"])

    def step(dtype: str, linking_loss: str) -> Way:
        settings = {"linking_loss": linking_loss, "num_negatives": NEGATIVES}
        objective = Objective(config, create_linking_loss(settings), 5.0, dtype)
        take_step = parallel_train_step(objective, device)
        table = dataclasses.replace(Table.place(vectors, device, dtype), products=dtype)
        state = devices_lib.replicate(create_train_state(params, tx), device)

        def way() -> None:
            nonlocal state
            state, metrics = take_step(state, parts, table, seed, batch * MENTIONS, False)
            jax.block_until_ready(metrics)

        return way

    dtypes = ("float32", "bfloat16")
    name = f"training step, {batch} x {tokens} tokens"
    for loss in ("hard_negatives", "in_batch"):
        yield Work(f"{name}, {loss}", "questions", batch, {d: step(d, loss) for d in dtypes})

    def loss_of(dtype: str) -> Callable[..., jax.Array]:
        encode = BertEncoder(bert, jnp.dtype(dtype))
        ids, mask = arrays["input_ids"], arrays["mask"]
        return lambda p: jnp.sum(encode.apply({"params": p}, ids, mask) ** 2)

    encoder_params = jax.device_put(params["bert"])
    for part, transform in (("forward", lambda f: f), ("forward and backward", jax.grad)):
        ways = {
            dtype: functools.partial(_wait, jax.jit(transform(loss_of(dtype))), encoder_params)
            for dtype in dtypes
        }
        yield Work(f"- {part}, encoder, no dropout", "questions", batch, ways)
    queries = devices_lib.place(vectors[None, : batch * MENTIONS], device)

    def mine(dtype: str) -> Way:
        table = dataclasses.replace(Table.place(vectors, device, dtype), products=dtype)
        nearest = devices_lib.parallel(lambda q, table: table.nearest(q, NEGATIVES), device)
        return functools.partial(_wait, nearest, queries, table)

    yield Work("- mining", "questions", batch, {dtype: mine(dtype) for dtype in dtypes})
    state = create_train_state(params, tx)
    update = jax.jit(lambda state: state.apply_gradients(state.params))
    ways = {"float32": functools.partial(_wait, update, state)}
    yield Work("- AdamW, without using memory again", "questions", batch, ways)


def linking(linker: os.PathLike[str], questions: os.PathLike[str]) -> Iterator[Work]:
    """Yields the work of linking questions, in batches of 64 and one at a time."""
    with open_rows(questions, with_mentions=False) as (rows, _):
        texts = [row.text for row in rows]
    yield real_texts(EntityLinker.from_pretrained(linker, index="exact"), texts)
    for index in ("exact", "auto"):
        linkers = {
            dtype: EntityLinker.from_pretrained(linker, index=index, dtype=dtype)
            for dtype in ("float32", "bfloat16")
        }
        name = linkers["float32"].index.name
        if index == "auto" and name == "exact":
            return
        ways = {dtype: functools.partial(opened, texts) for dtype, opened in linkers.items()}
        yield Work(f"link, {name}, batches of 64", "questions", len(texts), ways)
        few = texts[:: max(1, len(texts) // 50)]

        def one_by_one(opened: EntityLinker, few: list[str] = few) -> None:
            for text in few:
                opened(text)

        ways = {dtype: functools.partial(one_by_one, opened) for dtype, opened in linkers.items()}
        yield Work(f"link, {name}, one at a time", "questions", len(few), ways)


def starting(linker: os.PathLike[str]) -> Work:
    """Returns the work of the program `link` for one question, from its start to its end.

    Programs are compiled in the first pass, which does not count.
    """
    link = [sys.executable, "-m", "elq_jax.link", "--linker", os.fspath(linker), "who wrote dune?"]
    jax_alone = [sys.executable, "-c", "import jax; jax.devices()"]
    ways = {
        name: functools.partial(subprocess.run, command, check=True, capture_output=True)
        for name, command in {"link": link, "import of JAX alone": jax_alone}.items()
    }
    return Work("link, from the prompt to one answer", "questions", 1, ways)


def works(
    sizes: Sizes,
    linker: os.PathLike[str] | None = None,
    questions: os.PathLike[str] | None = None,
) -> Iterator[Work]:
    """Yields all work; linking where a linker and questions are given."""
    bert = BERTS[sizes.bert]
    rows = sizes.shapes[0][0] * sizes.shapes[0][1]
    yield product((rows, bert.hidden_size, bert.intermediate_size))
    for batch, tokens in sizes.shapes:
        yield encoder(bert, batch, tokens)
    yield from searches(sizes)
    yield from training(sizes)
    if linker is not None and questions is not None:
        yield starting(linker)
        yield from linking(linker, questions)


def to_line(row: Row) -> str:
    """Formats a line of the table."""
    share = "" if row.share is None else f"{100 * row.share:5.0f}%"
    rate = f"{row.rate:,.1f} {row.unit}/s"
    return (
        f"{row.work:42} {row.way:24} {1000 * row.seconds:9.2f} {rate:>22} {row.ratio:6.2f} {share}"
    )


def _wait(function: Callable[..., Any], *arguments: Any) -> None:
    jax.block_until_ready(function(*arguments))


def _has(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def main(arguments: list[str]) -> None:
    """Prints the table."""
    del arguments
    if (options.LINKER.value is None) != (options.QUESTIONS.value is None):
        raise ElqError("--linker, --questions: expected both or neither")
    start_jax(keep_memory=True)
    sizes, rounds = SMALL if options.SMALL.value else Sizes(), options.ROUNDS.value
    about = machine.describe_machine()
    units = ", ".join(machine.bfloat16_units()) or "no units for bfloat16"
    print(f"{about['cpu']} ({units}), {about['cores']} cores; jax {jax.__version__}")
    print(f"load when this began: {os.getloadavg()[0]:.1f}; medians of {rounds} rounds")
    print("auto takes {}, since {}\n".format(*devices_lib.fast_dtype()))
    print(f"{'work':42} {'way':24} {'ms':>9} {'per second':>22} {'ratio':>6} of the highest")
    large = product(sizes.large_product)
    for work in works(sizes, options.LINKER.value, options.QUESTIONS.value):
        for row in measure(work, rounds, large) if re.search(options.ONLY.value, work.name) else ():
            print(to_line(row), flush=True)


if __name__ == "__main__":
    run(main)
