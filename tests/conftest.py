"""Eight virtual CPU devices for every test, and the reference numbers."""

import atexit
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

# Without XLA's newer emitters, programs are compiled in a third of the time.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_cpu_use_fusion_emitters=false --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most programs run a few times only, and would be compiled for longer than they run.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
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


def xla_flags(num_devices: int) -> str:
    """$XLA_FLAGS of a program that a test starts; the last of two values of a flag counts."""
    return f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={num_devices}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Starts with the file that takes longest, so that no worker is left alone with it."""
    items.sort(key=lambda item: item.path.name != "test_several_hosts.py")


@pytest.fixture(scope="session")
def fixtures() -> pathlib.Path:
    """Folder of numbers produced by the original implementation (its README says how)."""
    return FIXTURES


@pytest.fixture(scope="module")
def folder(request, tmp_path_factory) -> pathlib.Path:
    """Directory of a tiny linker, with the threshold `THRESHOLD` of the test file."""
    from tiny import tiny_linker_directory

    threshold = request.module.THRESHOLD
    return tiny_linker_directory(tmp_path_factory.mktemp("linker"), threshold=threshold)


@pytest.fixture(scope="module")
def linker(folder):
    """The tiny linker of `folder`, on one device."""
    import jax

    from elq_jax.linking.linker import EntityLinker

    return EntityLinker.from_pretrained(folder, devices=jax.devices()[:1])


@pytest.fixture(scope="module", autouse=True)
def compiled_as_for_users(request) -> Iterator[None]:
    """What is compared with the original's numbers is compiled with all optimisations."""
    import jax
    from jax._src import compiler

    options_of_tests = compiler.get_compile_options

    def options_of_users(*arguments, **settings):
        options = options_of_tests(*arguments, **settings)
        options.env_option_overrides = [
            *options.env_option_overrides,
            ("xla_cpu_use_fusion_emitters", True),
        ]
        return options

    with pytest.MonkeyPatch.context() as patch:
        if getattr(request.module, "COMPILED_AS_FOR_USERS", False):
            patch.delenv("JAX_DISABLE_MOST_OPTIMIZATIONS")
            jax.config.update("jax_disable_most_optimizations", False)
            patch.setattr(compiler, "get_compile_options", options_of_users)
        yield
        jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="module", autouse=True)
def compiled_programs() -> Iterator[None]:
    """Lets go of them after each file: all together take gigabytes."""
    yield
    import jax

    jax.clear_caches()
