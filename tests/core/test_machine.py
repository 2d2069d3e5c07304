"""The memory of a process is its own, and a limit on it is said before it is felt."""

import pathlib
import platform
import resource
import subprocess
import sys

import pytest

from elq_jax.core import machine
from elq_jax.core.errors import ElqError

ROOT = pathlib.Path(__file__).parent.parent.parent


def test_peak_memory_is_not_that_of_the_parent():
    """`resource.getrusage` of a child begins with what its parent had."""
    large = bytearray(300 << 20)
    large[::4096] = b"x" * len(large[::4096])
    assert machine.peak_memory() > len(large)
    code = "from elq_jax.core.machine import peak_memory; print(peak_memory())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert 1 << 20 < int(done.stdout) < 200 << 20


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone has the settings")
def test_freed_memory_is_used_again():
    """The second of two large blocks gets pages that the system need not clear, unless returned."""
    code = (
        "import resource, sys; from elq_jax.core import machine\n"
        "if len(sys.argv) > 1: machine.keep_freed_memory()\n"
        "bytearray(64 << 20)\n"
        "if len(sys.argv) > 2: machine.return_freed_memory(int(sys.argv[2]))\n"
        "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "before = faults(); bytearray(64 << 20)[::4096]; print(faults() - before)"
    )
    for arguments, least, most in (
        ([], 1000, 1 << 20),
        (["keep"], 0, 100),
        (["keep", str(1 << 40)], 0, 100),
        (["keep", "0"], 1000, 1 << 20),
    ):
        command = [sys.executable, "-c", code, *arguments]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        assert least <= int(done.stdout) <= most


@pytest.mark.parametrize(
    ("limit", "fits"), [(resource.RLIM_INFINITY, True), (4 << 30, True), (1 << 30, False)]
)
def test_limits_on_memory(monkeypatch, limit, fits):
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (limit, resource.RLIM_INFINITY))
    if fits:
        machine.check_address_space()
    else:
        with pytest.raises(ElqError, match=r"may use 1\.00 GiB of address space.*raise the limit"):
            machine.check_address_space()
