"""benchmarks/gpu.py: what it measures is what it says, and a row that does not fit is a row."""

import dataclasses
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import xla_flags
from tiny import NARROW_BERT

from benchmarks import gpu
from elq_jax.core import devices as devices_lib

ROOT = pathlib.Path(__file__).parent.parent
TINY = dataclasses.replace(
    gpu.SMALL,
    berts=("tiny",),
    entities=300,
    questions=16,
    link_batch_size=8,
    search_entities=(500,),
    search_width=16,
    seconds=0.01,
)


@pytest.fixture(scope="module")
def measured():
    """Every row, with an encoder of one narrow layer, on one device."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(gpu.BERTS, "tiny", NARROW_BERT)
        one = jax.devices()[:1]
        patch.setattr(jax, "local_devices", lambda: one)
        yield {name: gpu.measure(row) for name, row in gpu.rows(TINY).items()}


def test_rows(measured):
    assert list(measured) == [
        "train tiny, full_catalogue",
        "train tiny, hard_negatives",
        "encode tiny",
        "encode tiny, from text",
        "link tiny",
        "search 500, 1 at a time",
        "search 500, 64 at a time",
    ]


@pytest.mark.parametrize(
    ("name", "in_a_call", "unit"),
    [
        ("train tiny, full_catalogue", TINY.batch_size, "examples"),
        ("train tiny, hard_negatives", TINY.batch_size, "examples"),
        ("encode tiny", TINY.encode_batch_size, "entities"),
        ("encode tiny, from text", TINY.encode_batch_size, "entities"),
        ("link tiny", TINY.link_batch_size, "questions"),
        ("search 500, 1 at a time", 1, "queries"),
        ("search 500, 64 at a time", 64, "queries"),
    ],
)
def test_rates_are_what_a_call_does_by_its_time(measured, name, in_a_call, unit):
    row = measured[name]
    assert row["rate"] * row["seconds"] == pytest.approx(in_a_call)
    assert row["unit"] == unit
    assert row["seconds"] > 0
    if "link" not in name and "search" not in name:
        length = TINY.tokens if "train" in name else TINY.entity_tokens
        assert row["tokens"] == pytest.approx(row["rate"] * length)
    if "search" in name:
        assert row["bytes"] * row["seconds"] == pytest.approx(500 * 16 * 2)
    cells = gpu.show(name, row | {"peak_flops": row["flops"] and 4 * row["flops"]}).split(" | ")
    assert len(cells) == len(gpu.HEADER)
    assert cells[5] == ("25.0%" if row["flops"] else "")


@pytest.mark.parametrize("num_devices", [1, 3])
def test_search_finds_the_nearest_rows_of_a_random_table(num_devices):
    devices = jax.devices()[:num_devices]
    entities, width = 1000, 32
    table = gpu.random_table(entities, width, devices, piece=150)
    queries = np.random.default_rng(0).normal(size=(num_devices, 5, width)).astype(np.float32)
    scores, rows = gpu.searcher(entities, devices)(devices_lib.place(queries, devices), table)

    vectors = np.asarray(table, np.float32).reshape(-1, width)[:entities]
    assert len(np.unique(vectors, axis=0)) == entities
    assert 0.9 * width**-0.5 < np.abs(vectors).max() <= width**-0.5
    slow = queries.reshape(-1, width) @ vectors.T
    best = np.argsort(-slow, axis=1)[:, : gpu.K]
    np.testing.assert_array_equal(np.asarray(rows).reshape(best.shape), best)
    np.testing.assert_allclose(
        np.asarray(scores).reshape(best.shape), np.take_along_axis(slow, best, 1), rtol=1e-5
    )


def test_a_row_that_does_not_fit_is_shown_and_other_errors_are_raised(capsys):
    found = gpu.measure(lambda: jax.block_until_ready(jnp.zeros(2**46, jnp.int8)))
    assert gpu.show("large", found).startswith("| large | out of memory | ")
    assert "RESOURCE_EXHAUSTED" in capsys.readouterr().err

    with pytest.raises(TypeError, match="incompatible shapes"):
        gpu.measure(lambda: jnp.zeros(2) + jnp.zeros(3))


def test_program():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--small", "--only=5,000, 1 at"],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": xla_flags(1), "ELQ_JAX_CACHE": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    header, _, row, empty, machine = done.stdout.splitlines()
    assert header.count("|") == row.count("|") == len(gpu.HEADER) + 1
    assert row.startswith("| search 5,000, 1 at a time | ")
    assert " queries | " in row
    assert machine.startswith("1 x cpu, ")
    assert not empty
