"""benchmarks/cpu.py: ways of one work give one result, and the table says what was measured."""

import dataclasses

import numpy as np
import pytest
from tiny import NARROW_BERT

from benchmarks import cpu

TINY = dataclasses.replace(
    cpu.SMALL, bert="tiny", shapes=((4, 8),), entities=17_000, queries=(64,), training=(4, 8)
)


@pytest.fixture(scope="module")
def works():
    """All work, with an encoder of one narrow layer, on one device."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(cpu.BERTS, "tiny", NARROW_BERT)
        patch.setattr(cpu, "_has", lambda package: False)
        yield {work.name: work for work in cpu.works(TINY)}


def test_works(works):
    assert list(works) == [
        "product [32, 16] x [16, 32]",
        "encode 4 x 8 tokens",
        "search, 64 at a time",
        "training step, 4 x 8 tokens, hard_negatives",
        "training step, 4 x 8 tokens, in_batch",
        "- forward, encoder, no dropout",
        "- forward and backward, encoder, no dropout",
        "- mining",
        "- AdamW, without using memory again",
    ]
    for name in [*list(works)[:3], "- forward, encoder, no dropout", "- mining"]:
        work = works[name]
        rows = cpu.measure(work, 1, cpu.product(TINY.large_product))
        assert [row.way for row in rows] == list(work.ways), name
        assert rows[0].ratio == 1
        for row in rows:
            assert row.seconds > 0
            assert row.rate == pytest.approx(work.count / row.seconds)
            assert (row.share is None) == (not work.flops)
            assert name in cpu.to_line(row)


def test_ways_agree(works):
    product = works["product [32, 16] x [16, 32]"].ways
    exact = product["float32"]()
    for way in product.values():
        np.testing.assert_allclose(way(), exact, rtol=0.05, atol=0.2)
    encoder = works["encode 4 x 8 tokens"].ways
    np.testing.assert_allclose(encoder["bfloat16"](), encoder["float32"](), atol=0.05)
    search = works["search, 64 at a time"].ways
    scores, rows = search["float32"]()
    found = search["bfloat16, then float32"]()
    np.testing.assert_allclose(found[0], scores, atol=1e-5)
    assert (found[1] == rows).mean() > 0.99


def test_steps_can_be_taken_again(works):
    step = works["training step, 4 x 8 tokens, in_batch"].ways["bfloat16"]
    step()
    step()


def test_ratios_are_of_rounds():
    """The machine is twice as slow in the second round."""
    work = cpu.Work("w", "things", 2, {"float32": int, "bfloat16": int}, 8.0)
    large = cpu.Work("l", "GFLOP", 1, {"float32": int, "bfloat16": int}, 16.0)
    # Rounds of float32, bfloat16, large float32, large bfloat16: 4, 2, 2, 2 and 8, 4, 4 s, ...
    times = iter([0, 4, 4, 6, 6, 8, 8, 10, 10, 18, 18, 22, 22, 26, 26, 30])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu.time, "perf_counter", lambda: float(next(times)))
        first, second = cpu.measure(work, 2, large)
    assert (first.seconds, second.seconds) == (6, 3)
    assert (first.ratio, second.ratio) == (1, 2)
    assert (first.rate, second.rate) == (2 / 6, 2 / 3)
    assert (first.share, second.share) == (0.25, 0.5)
