"""Eight virtual CPU devices for every test, and the reference numbers."""

import atexit
import contextlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("ELQ_JAX_DTYPE", "float32")  # of what a test leaves to the machine
if not {"PYTEST_XDIST_WORKER", "JAX_COMPILATION_CACHE_DIR"} & set(os.environ):
    # What one test compiles, the others and the programs that they start find on disk, this run.
    _compiled = tempfile.mkdtemp(prefix="elq_jax_tests_")
    atexit.register(shutil.rmtree, _compiled, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _compiled
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

import pytest

OWN_FIXTURES = pathlib.Path(__file__).parent / "fixtures"
# Another set with the same file names can be given: ELQ_FIXTURES=folder make test.
FIXTURES = pathlib.Path(os.environ.get("ELQ_FIXTURES") or OWN_FIXTURES).resolve()


@pytest.fixture(scope="session")
def fixtures() -> pathlib.Path:
    """Folder of numbers produced by the original implementation (its README says how)."""
    return FIXTURES


@contextlib.contextmanager
def compiled_quickly() -> Iterator[None]:
    """For programs that take a few steps, and so would be compiled for longer than they run."""
    import jax

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # of processes that are started
        jax.config.update("jax_disable_most_optimizations", True)
        yield
        jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def quick_compilation() -> Iterator[None]:
    with compiled_quickly():
        yield


@pytest.fixture(scope="module")
def quick_compilation_of_module() -> Iterator[None]:
    """Holds for the fixtures of the module too."""
    with compiled_quickly():
        yield


@pytest.fixture(scope="module", autouse=True)
def compiled_programs() -> Iterator[None]:
    """Lets go of them after each file: all together take gigabytes."""
    yield
    import jax

    jax.clear_caches()
