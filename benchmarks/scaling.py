"""Compares the estimated cost of a joint training step per device with the compiled program.

    python -m benchmarks.scaling

compiles the step of a small model for 1, 2, 4 and 8 virtual CPU devices and prints, per device, the
FLOPs, bytes and collective bytes that the arithmetic of docs/scaling.md expects and those that the
compiler counts. Nothing is executed.

    pip install libtpu==0.0.42.1  # what jax[tpu] installs
    python -m benchmarks.scaling --topology v3:2x2 --encoder large --entities 5903527 \\
        --batch_size 128 --tokens 32 --queries 32 --dtype bfloat16 --table_dtype bfloat16

does this with the TPU compiler; no TPU is needed (v3:2x2 is v3-8, v3:4x4 is v3-32, v5e:2x4 is
v5litepod-8).

    python -m benchmarks.scaling --paper

prints the tables of docs/scaling.md: estimates for real sizes from public peak rates.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import math
import os
import re
import time
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

import numpy as np
from absl import flags

from benchmarks.sizes import BERTS
from elq_jax.cli.run import run
from elq_jax.core.machine import peak_flops
from elq_jax.losses import FullCatalogue
from elq_jax.model import flops
from elq_jax.model.config import BertConfig, ElqConfig

_PAPER = flags.DEFINE_bool("paper", False, "Print the tables of docs/scaling.md.")
_TOPOLOGY = flags.DEFINE_string("topology", None, "TPU slice to compile for, such as v3:2x2.")
_DEVICES = flags.DEFINE_list("devices", ["1", "2", "4", "8"], "Numbers of virtual CPU devices.")
_ENCODER = flags.DEFINE_enum("encoder", "small", (*BERTS,), "Size of the encoder.")
_ENTITIES = flags.DEFINE_integer("entities", 20_000, "Number of entities.")
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 64, "Number of questions of a step, over all devices."
)
_TOKENS = flags.DEFINE_integer("tokens", 32, "Number of tokens of a question.")
_QUERIES = flags.DEFINE_integer("queries", 16, "Number of places for gold mentions per device.")
_CHUNK_SIZE = flags.DEFINE_integer(
    "chunk_size",
    None,
    "Number of catalogue rows scored at a time; by default half of a device's rows.",
)
_DTYPE = flags.DEFINE_enum("dtype", "float32", ("float32", "bfloat16"), "Type of matrix products.")
_TABLE_DTYPE = flags.DEFINE_enum(
    "table_dtype", "float32", ("float32", "bfloat16"), "Type of the entity vectors."
)
_REMAT = flags.DEFINE_bool("remat", False, "Recompute activations in the backward pass.")
_LOSS = flags.DEFINE_string("linking_loss", "full_catalogue", "Name of the linking loss.")

_SIZES = {"float32": 4, "bfloat16": 2, "int8": 1, "s32": 4, "u32": 4, "f32": 4, "bf16": 2}
_SIZES |= {"pred": 1, "s8": 1, "u8": 1, "s64": 8, "f16": 2, "u16": 2, "s16": 2}


@dataclasses.dataclass(frozen=True)
class Slice:
    """Describes a slice of TPU cores that JAX sees as devices, with public peak rates.

    Attributes:
      name: accelerator type.
      devices: P, number of devices.
      device_kind: name that JAX gives a device; decides its peak FLOP/s.
      memory: bytes of a device.
      memory_rate: number of bytes per second between a device and its memory.
      link_rate: number of bytes per second that a chip sends into a ring, in both directions.
      devices_per_chip: number of devices that share the links.
    """

    name: str
    devices: int
    device_kind: str
    memory: float
    memory_rate: float
    link_rate: float
    devices_per_chip: int


# Sources: docs/scaling.md.
SLICES = (
    Slice("v3-8", 8, "TPU v3", 16 * 2**30, 450e9, 2 * 83e9, 2),
    Slice("v3-32", 32, "TPU v3", 16 * 2**30, 450e9, 2 * 83e9, 2),
    Slice("v5litepod-8", 8, "TPU v5 lite", 16e9, 819e9, 2 * 50e9, 1),
)


@dataclasses.dataclass(frozen=True)
class Work:
    """Describes one joint training step and estimates its cost.

    Attributes:
      bert: sizes of the question encoder; D is its width.
      entities: E, number of entities.
      batch_size: B, number of questions over all devices.
      tokens: T, number of tokens of a question.
      queries: Q, number of places for gold mentions on one device.
      dtype: type of the encoder's matrix products.
      table_dtype: type of the entity vectors.
      remat: whether activations are recomputed.
    """

    bert: BertConfig
    entities: int
    batch_size: int
    tokens: int
    queries: int
    dtype: str = "bfloat16"
    table_dtype: str = "bfloat16"
    remat: bool = False

    @property
    def parameters(self) -> int:
        """Counts the parameters of the question encoder, with its mention head."""
        bert, width = self.bert, self.bert.hidden_size
        rows = bert.vocab_size + bert.max_positions + bert.num_token_types
        dense = 4 * (width * width + width) + 2 * width * bert.intermediate_size
        dense += bert.intermediate_size + width
        return rows * width + 2 * width + bert.num_layers * (dense + 4 * width) + 3 * width + 3

    def encoder_flops(self, devices: int) -> float:
        """Counts the FLOPs of the encoder; its backward pass costs twice the forward pass."""
        config = ElqConfig(self.bert, self.bert)
        questions = math.ceil(self.batch_size / devices)
        forward = flops.question_flops(config, questions, self.tokens, mentions=0)
        return (4 if self.remat else 3) * forward

    def linking_flops(self, devices: int) -> float:
        """Counts the FLOPs of the softmax over a device's rows: logits twice, expected entities."""
        rows = math.ceil(self.entities / devices)
        queries, width = devices * self.queries, self.bert.hidden_size
        return 1.5 * FullCatalogue().flops(queries, width, rows)

    def state_bytes(self) -> float:
        """Counts the bytes of parameters and both moments of Adam, float32, on every device."""
        return 12.0 * self.parameters

    def gradient_bytes(self) -> float:
        """Counts the bytes of gradients, float32."""
        return 4.0 * self.parameters

    def table_bytes(self, devices: int) -> float:
        """Counts the bytes of a device's rows of the catalogue."""
        rows = math.ceil(self.entities / devices)
        return float(rows * self.bert.hidden_size * _SIZES[self.table_dtype])

    def activation_bytes(self, devices: int) -> float:
        """Counts the bytes of activations (Korthikanti et al., 2022, equation 1)."""
        bert, width = self.bert, self.bert.hidden_size
        tokens = math.ceil(self.batch_size / devices) * self.tokens
        layer = tokens * width * (34 + 5 * bert.num_heads * self.tokens / width)
        layer *= _SIZES[self.dtype] / 2
        if self.remat:
            return layer + bert.num_layers * tokens * width * _SIZES[self.dtype]
        return layer * bert.num_layers

    def collective_bytes(self, devices: int) -> dict[str, float]:
        """Counts bytes per device of operands (all-gather: results) of large collectives."""
        if devices == 1:
            return {"all-reduce": 0.0, "all-gather": 0.0, "reduce-scatter": 0.0}
        vectors = 4.0 * devices * self.queries * self.bert.hidden_size
        return {
            "all-reduce": self.gradient_bytes(),
            "all-gather": vectors,  # Queries to the rows.
            "reduce-scatter": 2 * vectors,  # Gold rows, and gradients of the queries, back.
        }


def step_times(work: Work, on: Slice) -> dict[str, float]:
    """Computes the seconds that each resource is busy in a step, at its peak rate."""
    devices, chips = on.devices, on.devices // on.devices_per_chip
    peak = peak_flops(on.device_kind)
    # Parameters are read by the forward and the backward pass, gradients are written and read, Adam
    # reads and writes its state; rows and activations are read twice.
    traffic = 4 * work.gradient_bytes() + 2 * work.state_bytes()
    traffic += 2 * work.table_bytes(devices) + 2 * work.activation_bytes(devices)
    # Around a ring of chips; the cores of a chip add their gradients first.
    vectors = sum(work.collective_bytes(devices).values()) - work.gradient_bytes()
    sent = (chips - 1) / chips * (2 * work.gradient_bytes() + on.devices_per_chip * vectors)
    return {
        "encoder": work.encoder_flops(devices) / peak,
        "linking": work.linking_flops(devices) / peak,
        "memory": traffic / on.memory_rate,
        "links": sent / on.link_rate,
    }


def main(arguments: list[str]) -> None:
    """Prints the tables, or compares the estimate with compiled programs."""
    del arguments
    if _PAPER.value:
        _print_paper()
        return
    bert = BERTS[_ENCODER.value]
    work = Work(
        bert,
        *(_ENTITIES.value, _BATCH_SIZE.value, _TOKENS.value, _QUERIES.value),
        *(_DTYPE.value, _TABLE_DTYPE.value, _REMAT.value),
    )
    print(
        f"encoder {_ENCODER.value}: {work.parameters:,} parameters; {work.entities:,} entities, "
        f"batch {work.batch_size}, {work.tokens} tokens, {work.queries} mentions per device, "
        f"{work.dtype}, table {work.table_dtype}, remat {work.remat}, loss {_LOSS.value}"
    )
    if _TOPOLOGY.value:
        with _tpu(_TOPOLOGY.value) as devices:
            _print_compiled([(_TOPOLOGY.value, devices)], work)
        return
    counts = [int(count) for count in _DEVICES.value]
    flag = f"--xla_force_host_platform_device_count={max(counts)}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}"
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax

    everything = jax.devices()
    _print_compiled([(f"{count} x CPU", everything[:count]) for count in counts], work)


@contextlib.contextmanager
def _tpu(topology: str) -> Iterator[Sequence[Any]]:
    """Yields devices that need not exist; programs can be compiled for them but not run."""
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax
    from jax.experimental import topologies

    devices = topologies.get_topology_desc(topology, platform="tpu").devices
    # Some functions of elq_jax.retrieval ask which backend they are traced for.
    with mock.patch.object(jax, "default_backend", return_value="tpu"):
        yield devices


def _print_compiled(targets: Sequence[tuple[str, Sequence[Any]]], work: Work) -> None:
    for name, devices in targets:
        count = len(devices)
        rows = math.ceil(work.entities / count)
        chunk_size = _CHUNK_SIZE.value or math.ceil(rows / 2)
        started = time.monotonic()
        found = _counts(_compile(work, devices, chunk_size))
        seconds = time.monotonic() - started
        print(
            f"\n{name}: {count} device(s), {rows:,} rows each in chunks of {chunk_size:,}, "
            f"compiled in {seconds:.0f} s; per device, arithmetic and program:"
        )
        # The compiler counts the body of a loop once.
        expected = work.encoder_flops(count) + work.linking_flops(count) * chunk_size / rows
        _line("FLOPs, the first chunk's only", expected, found["flops"], 1e9, "GFLOP")
        arguments = work.state_bytes() + work.table_bytes(count)
        _line("bytes of state and rows", arguments, found["arguments"], 1e6, "MB")
        temporary = work.gradient_bytes() + work.activation_bytes(count)
        temporary += 2 * 4.0 * count * work.queries * chunk_size
        _line("temporary bytes", temporary, found["temporary"], 1e6, "MB")
        for kind, expected in work.collective_bytes(count).items():
            _line(f"bytes of {kind}", expected, found[kind], 1e6, "MB")


def _line(label: str, expected: float, found: float, unit: float, name: str) -> None:
    ratio = f"{found / expected:8.2f}" if expected else ""
    print(
        f"  {label:40} {expected / unit:14,.3f} {found / unit:14,.3f} {name:6}{ratio}", flush=True
    )


def _compile(work: Work, devices: Sequence[Any], chunk_size: int) -> Any:
    """Compiles the training step of `elq_jax.training.loop` from shapes, without arrays."""
    import jax
    import jax.numpy as jnp

    from elq_jax.losses import create_linking_loss
    from elq_jax.model.elq import QuestionEncoder
    from elq_jax.retrieval.table import Table
    from elq_jax.training.optimizer import create_optimizer, create_train_state
    from elq_jax.training.step import Objective, parallel_train_step

    config = ElqConfig(work.bert, work.bert)
    tx = create_optimizer(1e-5)
    count = len(devices)

    def initialise() -> Any:
        ids, mask = jnp.zeros((1, 4), jnp.int32), jnp.ones((1, 4), bool)
        bounds = jnp.zeros((1, 1, 2), jnp.int32)
        encoder = QuestionEncoder(config)
        variables = encoder.init(jax.random.key(0), ids, mask, bounds, method="encode_mentions")
        return create_train_state(variables["params"], tx)

    def each(shape: Sequence[int], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((count, *shape), dtype)

    state = jax.tree.map(lambda x: each(x.shape, x.dtype), jax.eval_shape(initialise))
    size = math.ceil(work.batch_size / count)
    mentions = max(1, math.ceil(work.queries / size))
    batch = {
        "input_ids": each((size, work.tokens), jnp.int32),
        "mask": each((size, work.tokens), bool),
        "gold_bounds": each((size, mentions, 2), jnp.int32),
        "gold_mask": each((size, mentions), bool),
        "gold_rows": each((size, mentions), jnp.int32),
        "example_mask": each((size,), bool),
    }
    rows = math.ceil(work.entities / count)
    values = each((rows, work.bert.hidden_size), jnp.dtype(work.table_dtype))
    loss = create_linking_loss({"linking_loss": _LOSS.value, "chunk_size": chunk_size})
    objective = Objective(config, loss, dtype=work.dtype, remat=work.remat)
    step = parallel_train_step(objective, devices)
    table = Table(values, None, work.entities)
    lowered = step.lower(state, batch, table, each((), jnp.int32), work.queries, False)
    return lowered.compile()


def _counts(compiled: Any) -> dict[str, float]:
    """Returns the compiler's counts of its program, per device."""
    cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
    cost = cost[0] if isinstance(cost, list) else cost
    return collections.defaultdict(float, collectives(compiled.as_text())) | {
        "flops": cost["flops"],
        "arguments": float(memory.argument_size_in_bytes),
        "temporary": float(memory.temp_size_in_bytes),
    }


_COLLECTIVE = re.compile(
    r"= (?P<shape>.*?) (?P<kind>all-reduce|all-gather|reduce-scatter)(-start)?"
    r"\((?P<operands>[^)]*)\).*?replica_groups=(\{\{(?P<group>[\d,]*)\}|\[\d+,(?P<size>\d+)\])"
)
_ARRAY = re.compile(r"\b([a-z]+\d+|pred)\[([\d,]*)\]")


def collectives(text: str) -> dict[str, float]:
    """Counts the bytes that the collectives of an HLO program combine, by kind.

    For an all-gather and an all-reduce these are the bytes of the result, for a reduce-scatter
    those of the result times the number of devices.
    """
    found: dict[str, float] = collections.defaultdict(float)
    for match in _COLLECTIVE.finditer(text):
        size = sum(
            _SIZES[dtype] * float(np.prod([int(n) for n in dims.split(",") if n]))
            for dtype, dims in _ARRAY.findall(match["shape"])
        )
        if match["kind"] == "reduce-scatter":
            group = match["group"]
            size *= int(match["size"]) if group is None else len(group.split(","))
        found[match["kind"]] += size
    return dict(found)


def _print_paper() -> None:
    bert = BERTS["large"]
    for entities in (5_903_527, 100_000_000):
        for dtype in ("bfloat16", "int8"):
            _print_bytes(Work(bert, entities, 0, 32, 0, table_dtype=dtype))
    for entities in (5_903_527, 100_000_000):
        _print_times(bert, entities)


def _print_bytes(work: Work) -> None:
    print(f"\n{work.entities:,} entities, {work.table_dtype}: GB per device\n")
    print("| slice | state | gradients | activations | rows | together | device has |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for on in SLICES:
        here = dataclasses.replace(work, batch_size=16 * on.devices)
        parts = (
            here.state_bytes(),
            here.gradient_bytes(),
            here.activation_bytes(on.devices),
            here.table_bytes(on.devices),
        )
        shown = " | ".join(f"{part / 1e9:.2f}" for part in (*parts, sum(parts)))
        fits = "" if sum(parts) < on.memory else ", too little"
        print(f"| {on.name} | {shown} | {on.memory / 1e9:.1f}{fits} |")


def _print_times(bert: BertConfig, entities: int) -> None:
    print(f"\n{entities:,} entities, bfloat16: ms per step that each resource is busy\n")
    print("| slice | batch | encoder | linking | memory | links | at least | one after another |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for on in SLICES:
        for batch_size in sorted({128, 16 * on.devices, 64 * on.devices}):
            queries = 2 * batch_size // on.devices
            work = Work(bert, entities, batch_size, 32, queries)
            times = step_times(work, on)
            compute = times["encoder"] + times["linking"]
            least = max(compute, times["memory"], times["links"])
            shown = " | ".join(f"{1e3 * x:.1f}" for x in (*times.values(), least))
            total = compute + times["memory"] + times["links"]
            print(f"| {on.name} | {batch_size} | {shown} | {1e3 * total:.1f} |")


if __name__ == "__main__":
    run(main)
