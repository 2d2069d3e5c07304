"""Keeps the folder of a run on a disk that all its processes see, or on object storage (gs://)."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from elq_jax.core import devices as devices_lib
from elq_jax.core.errors import ElqError
from elq_jax.storage.files import folder_lock, make_folder, user_address


class Workdir:
    """A local folder to work in, and the address that its files are copied to.

    On a disk both are the same, and `publish` and `fetch` do nothing. Files on object storage
    cannot be memory-mapped or appended to: there every host works in a folder of its own under
    $ELQ_JAX_SCRATCH (by default ~/.cache/elq_jax/runs), and copies what others or a later start
    need to the address and back.

    Attributes:
      address: path or gs:// address of the run, which Orbax writes to.
      path: path of the local folder to work in.
      is_remote: whether address and path differ.

    Raises:
      ElqError: the package for this kind of address is not installed.
    """

    def __init__(self, address: str | os.PathLike[str]):
        address = user_address(address)
        self.is_remote = isinstance(address, str)
        self.address = os.fspath(address).rstrip("/")
        if not self.is_remote:
            self.path = address
        else:
            self._files, self._root = _file_system(self.address)
            scratch = os.environ.get("ELQ_JAX_SCRATCH")
            scratch = pathlib.Path(scratch or pathlib.Path.home() / ".cache/elq_jax/runs")
            name = hashlib.sha256(self.address.encode()).hexdigest()[:16]
            self.path = scratch / f"{pathlib.PurePosixPath(self.address).name}-{name}"
        make_folder(self.path)

    def publish(self, *names: str, again: bool = True) -> None:
        """Copies local files to the address; unless `again`, only files that are missing there."""
        for name in names if self.is_remote else ():
            source = self.path / name
            files = [source] if source.is_file() else sorted(source.rglob("*"))
            for file in files:
                target = f"{self._root}/{file.relative_to(self.path).as_posix()}"
                if file.is_file() and (again or not self._files.exists(target)):
                    self._files.makedirs(target.rpartition("/")[0], exist_ok=True)
                    self._files.put_file(os.fspath(file), target)

    def fetch(self, *names: str, again: bool = False) -> None:
        """Copies files from the address that are missing here; with `again`, all of them."""
        for name in names if self.is_remote else ():
            self._files.invalidate_cache()
            for source in self._files.find(f"{self._root}/{name}"):
                target = self.path / pathlib.PurePosixPath(source).relative_to(self._root)
                if again or not target.exists():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    partial = target.with_name(f".{target.name}.partial")
                    self._files.get_file(source, os.fspath(partial))
                    partial.replace(target)

    def has(self, pattern: str) -> bool:
        """Returns whether a file or folder is there, here or at the address: "joint/best"."""
        if any(self.path.glob(pattern)):
            return True
        return self.is_remote and bool(self._files.glob(f"{self._root}/{pattern}"))

    def exchange(self, name: str) -> None:
        """Copies each process's files of a folder to the address, and from there to all others."""
        self.publish(name, again=False)
        devices_lib.wait_for_all(f"{self.address}/{name}: published by all")
        self.fetch(name)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Locks the folder for this process until it ends.

        Raises:
          ElqError: another process has locked it.
        """
        with folder_lock(self.path):
            yield

    def made_by_one(self, make: Any, *arguments: Any, **settings: Any) -> Any:
        """Calls `make`, which writes files or opens existing ones, in every process.

        Where processes share the folder, the first process is done before the others begin.
        """
        alone = self.is_remote or devices_lib.is_main()
        result = make(*arguments, **settings) if alone else None
        devices_lib.wait_for_all(f"{self.path}: {getattr(make, '__qualname__', make)}")
        return result if alone else make(*arguments, **settings)


def _file_system(address: str) -> tuple[Any, str]:
    import fsspec

    try:
        files, root = fsspec.core.url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise ElqError(
            f"{address}: {error}; for gs:// install gcsfs (it is in requirements-tpu.txt)"
        ) from error
    return files, root.rstrip("/")
