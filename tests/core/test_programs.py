"""Programs on disk: loaded instead of traced, and made again where a file cannot be used."""

import functools
import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elq_jax.core import devices, programs
from elq_jax.core.programs import KeptProgram

X = np.arange(6, dtype=np.float32).reshape(1, 6)


@pytest.fixture
def cache(tmp_path):
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    yield tmp_path
    jax.config.update("jax_compilation_cache_dir", before)


def make(about="f", kind="jit"):
    """Returns a program, and the arguments with which it has been traced."""
    traced = []

    def f(tree, x, k):
        traced.append((x.shape[-1], k))
        return {"sum": tree["a"] + x, "best": jax.lax.top_k(x, k)}

    device = jax.local_devices()[:1]
    jitted = functools.partial(jax.jit, static_argnums=2)
    parallel = functools.partial(devices.parallel, devices=device, static=2)
    function = jitted(f) if kind == "jit" else parallel(f)
    return KeptProgram(function, about, device, static=(2,)), traced


@pytest.mark.parametrize("kind", ["jit", "parallel"])
def test_second_process_traces_nothing(cache, kind):
    first, traced = make(kind=kind)
    expected = first({"a": X}, X, 2)
    assert traced == [(6, 2)]
    second, traced = make(kind=kind)
    for _ in range(2):
        result = second({"a": jnp.asarray(X)}, X, 2)
        jax.tree.map(np.testing.assert_array_equal, result, expected)
    assert not traced
    np.testing.assert_array_equal(result["best"][0], [[5, 4]])


def test_each_program_has_a_file_of_its_own(cache):
    for about, x, k in (("f", X, 2), ("f", X, 3), ("f", X[:, :4], 2), ("g", X, 2)):
        program, traced = make(about)
        assert program({"a": np.zeros_like(x)}, x, k)["best"][0].shape == (1, k)
        assert traced == [(x.shape[-1], k)]
    assert len(list(cache.glob("elq_jax_*"))) == 4


def test_threads_that_compile_side_by_side_keep_all_programs(cache):
    """Both are inside a compilation before either leaves it."""
    both = threading.Barrier(2, timeout=60)

    def f(x):
        both.wait()
        return x + 1

    def call(size):
        program = KeptProgram(jax.jit(f), "side by side", jax.local_devices()[:1])
        return program(np.zeros(size, np.float32))

    with ThreadPoolExecutor(2) as threads:
        assert [result.shape for result in threads.map(call, (3, 4))] == [(3,), (4,)]
    assert len(list(cache.glob("elq_jax_*"))) == 2
    assert jax.config.jax_enable_compilation_cache


@pytest.mark.parametrize("damage", ["content", "cut", "sources", "program"])
def test_file_that_cannot_be_used_is_made_again(cache, monkeypatch, damage):
    expected = make()[0]({"a": X}, X, 2)
    [path] = cache.glob("elq_jax_*")
    whole = path.read_bytes()
    if damage == "content":
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    elif damage == "cut":
        path.write_bytes(whole[:50])
    elif damage == "sources":
        monkeypatch.setattr(programs, "_environment", lambda: b"x" * 32)
    else:  # It has the right checksum, but is none.
        monkeypatch.setattr(programs, "_load", lambda *_: lambda *_: 1 / 0)
    program, traced = make()
    jax.tree.map(np.testing.assert_array_equal, program({"a": X}, X, 2), expected)
    assert traced == [(6, 2)]
    program({"a": X}, X, 2)
    monkeypatch.undo()
    again, traced = make()
    again({"a": X}, X, 2)
    assert bool(traced) == (damage == "sources")
    assert list(cache.glob("elq_jax_*")) == [path]


def test_function_itself_runs_where_nothing_is_kept(cache):
    jax.config.update("jax_compilation_cache_dir", None)
    program, traced = make()
    program({"a": X}, X, 2)
    program({"a": X}, X, 2)
    assert traced == [(6, 2)]
    assert not list(cache.iterdir())


def test_program_that_cannot_be_written_runs(cache, monkeypatch):
    """JAX says so of some, and the service ended while it warmed up."""

    def serialize(_):
        raise jax.errors.JaxRuntimeError("UNIMPLEMENTED: `LessThan` is not serializable.")

    monkeypatch.setattr(programs.serialize_executable, "serialize", serialize)
    program, _ = make()
    np.testing.assert_array_equal(program({"a": X}, X, 2)["sum"], 2 * X)
    assert not list(cache.glob("elq_jax_*"))


def test_folder_that_cannot_be_written(cache):
    jax.config.update("jax_compilation_cache_dir", str(cache / "file" / "folder"))
    (cache / "file").write_text("")
    program, _ = make()
    np.testing.assert_array_equal(program({"a": X}, X, 2)["sum"], 2 * X)
