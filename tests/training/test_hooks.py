"""What happens after a step: what is due, means and rates, NaN, the best on dev."""

import json
import math
import types

import jax
import numpy as np
import pytest

from elq_jax.core.errors import ElqError
from elq_jax.evaluation.sweep import Sweep
from elq_jax.training import hooks
from elq_jax.training.metrics import MetricsWriter

SETTINGS = {"log_every": 4, "checkpoint_every": 6, "eval_every": 5}


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def taken(step, due=None, **metrics):
    """A step of two devices of whose batch of four rows one is padding."""
    batch = {
        "example_mask": np.array([True, True, True, False]),
        "mask": np.arange(5) < np.array([[5], [2], [3], [0]]),
    }
    metrics = {name: jax.numpy.array([value, value]) for name, value in metrics.items()}
    state = types.SimpleNamespace(params={"step": jax.numpy.array(step)})
    return hooks.StepResult(step, state, metrics, batch, 7.0, due or hooks.Due(False, False, False))


def test_what_is_due():
    """Whatever is scored or saved has its line of metrics before; at the end all is due."""
    dues = {s: hooks.Due.after(s, 11, SETTINGS, True, stopping=s == 7) for s in range(1, 12)}
    assert [step for step, due in dues.items() if due.score] == [5, 10, 11]
    assert [step for step, due in dues.items() if due.save] == [6, 7, 11]
    assert [step for step, due in dues.items() if due.metrics] == [4, 5, 6, 7, 8, 10, 11]
    assert not any(hooks.Due.after(s, 11, SETTINGS, False, False).score for s in range(1, 12))


@pytest.fixture
def metrics(tmp_path):
    """The hook, with a clock that shows two seconds whenever it is looked at."""
    clock = types.SimpleNamespace(seconds=2.0, restart=lambda: None)
    return hooks.Metrics(
        "joint",
        20,
        jax.local_devices()[:2],
        "float32",
        lambda step: step / 100,
        MetricsWriter(tmp_path / "metrics.jsonl", 0),
        clock,
    )


def test_means_and_rates_of_an_interval(metrics, tmp_path):
    due = hooks.Due(True, False, False)
    for step, loss in enumerate([1.0, 2.0, 6.0, 10.0], 1):
        values = {"loss": loss, "span_loss": 0.0, "linking_loss": loss}
        metrics.after_step(taken(step, due if step in (3, 4) else None, **values))
    first, second = lines_of(tmp_path / "metrics.jsonl")
    assert (first["step"], first["loss"], first["learning_rate"]) == (3, 3.0, 0.02)
    assert (second["step"], second["loss"], second["learning_rate"]) == (4, 10.0, 0.03)
    assert first["seconds_per_step"] == pytest.approx(2 / 3)
    assert first["examples_per_second"] == 4.5
    assert first["tokens_per_second"] == 15
    assert first["model_flops_per_second"] == 10.5
    assert second["examples_per_second"] == 1.5


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_value_that_is_not_finite_is_seen_wherever_it_was_in_the_interval(
    metrics, tmp_path, value
):
    values = {"loss": 1.0, "span_loss": 1.0, "linking_loss": 1.0}
    metrics.after_step(taken(1, **values | {"linking_loss": value}))
    with pytest.raises(ElqError, match=r"joint: linking_loss is (nan|inf); the newest checkpoint"):
        metrics.after_step(taken(2, hooks.Due(True, True, True), **values))
    assert not (tmp_path / "metrics.jsonl").read_text()


def test_a_pause_does_not_count(monkeypatch):
    now = 0.0
    monkeypatch.setattr(hooks, "time", types.SimpleNamespace(monotonic=lambda: now))
    clock = hooks.Clock()
    now = 2.0
    with clock.paused():
        now = 50.0
    now = 53.0
    assert clock.seconds == 5.0


def test_the_best_on_dev_is_kept_and_a_tie_keeps_the_earlier_step(tmp_path):
    """The mean over two dev sets decides; one score is of a checkpoint that is resumed from."""
    f1 = {2: (0.5, 0.5), 4: (0.25, 0.75), 6: (0.75, 0.0), 8: (1.0, 0.5), 10: (0.5, 1.0)}

    def evaluate(params):
        step = int(params["step"])

        def sweep(weak):
            """One threshold, above which a share of all mentions is found; the rest strongly."""
            weak, strong = np.array([200 * weak]), np.array([200 * (1 - weak)])
            ends = np.array([-float(step)]), np.array([np.inf])
            return Sweep(*ends, weak, strong, np.array([200]), gold=200)

        sets = zip(("a", "b"), f1[step], strict=True)
        return {name: types.SimpleNamespace(sweep=sweep(weak)) for name, weak in sets}

    kept = []
    record = {"seed": 3, "best_f1": -1.0, "best_step": -1}
    writer = MetricsWriter(tmp_path / "metrics.jsonl", 0)
    for first in (1, 5):  # Resumed after step 4 with what was recorded then.
        hook = hooks.KeepBest(
            evaluate,
            lambda params, threshold: kept.append((int(params["step"]), threshold)),
            "weak",
            record,
            writer,
            hooks.Clock(),
        )
        for step in range(first, 11 if first == 5 else 5):
            hook.after_step(taken(step, hooks.Due(True, step % 2 == 0, False)))
    assert kept == [(2, -2.0), (8, -8.0)]
    assert record == {"seed": 3, "best_f1": 0.75, "best_step": 8}
    rows = lines_of(tmp_path / "metrics.jsonl")
    assert [row["dev_weak_f1"] for row in rows] == [0.5, 0.5, 0.375, 0.75, 0.75]
    assert [row["dev_weak_f1/b"] for row in rows] == [0.5, 0.75, 0.0, 0.5, 1.0]
    assert [row["dev_strong_f1"] for row in rows] == [0.5, 0.5, 0.625, 0.25, 0.25]
    assert [row["dev_threshold"] for row in rows] == [-2.0, -4.0, -6.0, -8.0, -10.0]


def test_shares_of_the_time(monkeypatch):
    times = iter([0, 1, 1, 4, 4, 4, 10, 15])  # a batch, a step, no further batch, dev
    monkeypatch.setattr(hooks.time, "monotonic", lambda: float(next(times)))
    shares = hooks.Shares()
    assert str(shares) == "no time"
    for batch in shares.of_next("waiting for batches", ["batch"]):
        assert batch == "batch"
        with shares.of("steps"):
            pass
    with pytest.raises(ZeroDivisionError), shares.of("dev"):
        1 / 0  # noqa: B018
    assert str(shares) == "0.1 min: dev 55.6%, steps 33.3%, waiting for batches 11.1%"
