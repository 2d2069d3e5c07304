"""The type of matrix products is the one that this machine is fast in."""

import json

import jax
import pytest

from elq_jax.core import devices, machine
from elq_jax.core.errors import ElqError


@pytest.fixture
def cpu(monkeypatch, tmp_path):
    """Pretends that the CPU has units for bfloat16 and a speed; counts measurements."""
    monkeypatch.delenv("ELQ_JAX_DTYPE")
    monkeypatch.setattr(machine, "bfloat16_units", lambda: ["amx_bf16", "avx512_bf16"])
    measured = []

    def pretend(speedup, folder=str(tmp_path)):
        def measure():
            measured.append(speedup)
            return speedup

        devices._cpu_speedup.cache_clear()
        monkeypatch.setattr(devices, "_measure_speedup", measure)
        monkeypatch.setattr(type(jax.config), "jax_compilation_cache_dir", folder, raising=False)
        return measured

    yield pretend
    devices._cpu_speedup.cache_clear()


@pytest.mark.parametrize(("speedup", "dtype"), [(5.0, "bfloat16"), (1.1, "float32")])
def test_auto_takes_what_is_measured(cpu, capsys, speedup, dtype):
    cpu(speedup)
    assert devices.compute_dtype("auto") == dtype
    devices.say_dtype("auto")
    devices.say_dtype("float32")
    assert capsys.readouterr().err == (
        f"dtype: auto takes {dtype}, since this CPU has amx_bf16 and a product takes "
        f"{1 / speedup:.2f} of its time in float32\n"
    )
    assert devices.compute_dtype("float32") == "float32"
    assert devices.compute_dtype("bfloat16") == "bfloat16"


def test_nothing_is_measured_without_units(cpu, monkeypatch):
    measured = cpu(5.0)
    monkeypatch.setattr(machine, "bfloat16_units", lambda: [])
    assert devices.fast_dtype() == ("float32", "this CPU has no units for bfloat16")
    assert not measured


def test_measurements_are_remembered(cpu, tmp_path):
    cpu(5.0)
    assert devices.compute_dtype("auto") == "bfloat16"
    measured = cpu(1.0)  # as a new process would
    assert devices.compute_dtype("auto") == "bfloat16"
    assert measured == [5.0]
    [file] = tmp_path.iterdir()
    for damaged in ("{", "[]", '{"other CPU": "fast"}', json.dumps({"other CPU": 3.0})):
        file.write_text(damaged)
        cpu(1.0)
        assert devices.compute_dtype("auto") == "float32"
    assert json.loads(file.read_text())["other CPU"] == 3.0


def test_a_busy_machine_is_measured_again(cpu, tmp_path):
    """A speedup that other load hid is not what later processes go by."""
    cpu(1.0)
    assert devices.compute_dtype("auto") == "float32"
    assert not list(tmp_path.iterdir())
    cpu(5.0)
    assert devices.compute_dtype("auto") == "bfloat16"


@pytest.mark.parametrize("folder", [None, "gs://bucket/programs", "/proc/nowhere"])
def test_folders_that_remember_nothing(cpu, folder):
    measured = cpu(5.0, folder)
    assert devices.compute_dtype("auto") == "bfloat16"
    assert devices.compute_dtype("auto") == "bfloat16"
    assert measured == [5.0]


def test_environment_decides(cpu, monkeypatch, capsys):
    measured = cpu(5.0)
    monkeypatch.setenv("ELQ_JAX_DTYPE", "float32")
    assert devices.compute_dtype("auto") == "float32"
    devices.say_dtype("auto")
    assert (measured, capsys.readouterr().err) == ([], "")
    monkeypatch.setenv("ELQ_JAX_DTYPE", "fp16")
    with pytest.raises(ElqError, match="ELQ_JAX_DTYPE: 'fp16'; expected float32 or bfloat16"):
        devices.compute_dtype("auto")
    with pytest.raises(ElqError, match="'fp16'; expected one of auto, float32, bfloat16"):
        devices.compute_dtype("fp16")


def test_measurement_and_flags_of_this_machine():
    assert devices._measure_speedup() > 0
    assert set(machine.bfloat16_units()) <= {"amx_bf16", "avx512_bf16", "bf16"}
