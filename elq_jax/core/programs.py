"""Keeps compiled programs on disk in a form that is loaded without tracing the function again.

JAX's own cache of compiled programs is looked up by the traced program, and tracing an encoder
takes several times as long as loading it. A file here is looked up by what the trace depends on.

Files are in the folder of JAX's cache and hold machine code, as those of JAX do, and pickles of
JAX: whoever can write there can run code. Nothing is ever read from a linker directory.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import os
import pathlib
import pickle
import tempfile
import threading
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.experimental import serialize_executable
from jax.experimental.compilation_cache import compilation_cache

from elq_jax.core import machine

_TRACED = ("core", "linking", "model", "retrieval")  # Packages with functions that are traced.
_DIGEST = hashlib.sha256().digest_size


class KeptProgram:
    """A function whose compiled programs are kept on disk, one for each kind of arguments.

    Results are those of the function. It is called itself where programs are not kept: without a
    folder on this machine (`devices.use_compilation_cache`), on accelerators, and where several
    processes work together. A file that is damaged, or of other sources or versions, is replaced.

    Args:
      function: function by `jax.jit` or `devices.parallel`.
      about: text that says all that the function depends on besides its arguments, but the sources
        of this library and the settings of JAX.
      devices: devices that the function runs on.
      static: positions of arguments that are compiled in.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        about: str,
        devices: Sequence[jax.Device],
        static: Sequence[int] = (),
    ):
        self._function, self._about, self._static = function, about, frozenset(static)
        self._devices = list(devices)
        self._programs: dict[Any, Callable[..., Any]] = {}

    def __call__(self, *arguments: Any) -> Any:
        """Calls the function; the first call with arguments of new shapes loads or compiles it."""
        folder = _folder(self._devices)
        if folder is None:
            return self._function(*arguments)
        passed = [x for i, x in enumerate(arguments) if i not in self._static]
        leaves, tree = jax.tree.flatten(passed)
        shapes = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
        key = tuple(arguments[i] for i in sorted(self._static)), tree, shapes
        if key in self._programs:
            return self._programs[key](*passed)
        path = folder / f"elq_jax_{self._name(key)}"
        with contextlib.suppress(Exception):  # Whatever is wrong with a file, it is made again.
            program = _load(path, self._devices)
            result = jax.block_until_ready(program(*passed))
            self._programs[key] = program
            return result
        with _without_cache:
            program = self._function.lower(*arguments).compile()
        _save(path, program)
        self._programs[key] = program
        return program(*passed)

    def _name(self, key: Any) -> str:
        """Names the file of a program, by what it computes and how JAX is set to compile it."""
        settings = {
            name: value
            for name, value in jax.config.values.items()
            if "cache" not in name and "log" not in name
        }
        devices = [(device.platform, device.id) for device in self._devices]
        flags = os.environ.get("XLA_FLAGS", "")
        content = repr((self._about, key, devices, sorted(settings.items()), flags))
        return hashlib.sha256(content.encode()).hexdigest()[:32]


def _folder(devices: Sequence[jax.Device]) -> pathlib.Path | None:
    """Returns the folder of compiled programs; None where they are not kept."""
    folder = jax.config.jax_compilation_cache_dir
    is_kept = (
        folder
        and "://" not in folder
        and _without_cache.is_cache_wanted()
        and devices[0].platform == "cpu"
        and jax.process_count() == 1
    )
    return pathlib.Path(folder) if is_kept else None


@functools.cache
def _environment() -> bytes:
    """Returns a digest of the sources, versions and processor that programs are made for."""
    digest = hashlib.sha256()
    root = pathlib.Path(__file__).parent.parent
    for package in _TRACED:
        for path in sorted((root / package).glob("*.py")):
            digest.update(path.read_bytes())
    versions = [importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "numpy")]
    digest.update(repr((versions, machine.cpu_model(), machine.cpu_flags())).encode())
    return digest.digest()


def _load(path: pathlib.Path, devices: Sequence[jax.Device]) -> Callable[..., Any]:
    """Loads a program; raises where there is none, it is damaged, or it is of other sources."""
    content = path.read_bytes()
    environment, checksum = content[:_DIGEST], content[_DIGEST : 2 * _DIGEST]
    content = content[2 * _DIGEST :]
    if environment != _environment() or checksum != hashlib.sha256(content).digest():
        raise ValueError(f"{path}: damaged, or of other sources")
    return serialize_executable.deserialize_and_load(
        *pickle.loads(content), backend=devices[0].client, execution_devices=devices
    )


def _save(path: pathlib.Path, program: jax.stages.Compiled) -> None:
    """Writes a program whole, unless it cannot be written."""
    # XLA raises a RuntimeError for programs that cannot be written.
    with contextlib.suppress(OSError, ValueError, NotImplementedError, RuntimeError):
        content = pickle.dumps(serialize_executable.serialize(program))
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix="tmp_", delete=False) as file:
            file.write(_environment() + hashlib.sha256(content).digest() + content)
        os.replace(file.name, path)


class _Switch:
    """Turns JAX's cache off as long as any thread is inside.

    Programs from that cache lack parts when they are written again.
    """

    def __init__(self):
        self._lock, self._inside = threading.Lock(), 0

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._set(False)

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._set(True)

    def is_cache_wanted(self) -> bool:
        """Returns whether JAX's cache is on, or off only because a thread is inside."""
        with self._lock:
            return self._inside > 0 or jax.config.jax_enable_compilation_cache

    def _set(self, is_on: bool) -> None:
        jax.config.update("jax_enable_compilation_cache", is_on)
        compilation_cache.reset_cache()  # JAX looks once whether there is one.


_without_cache = _Switch()
