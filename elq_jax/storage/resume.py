"""Records the inputs of files, so that work is only resumed with the same inputs."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from elq_jax.core.errors import DataError, DiskFullError, ElqError
from elq_jax.storage.files import (
    folder_lock,
    is_empty_folder,
    make_folder,
    plain_json,
    take_place,
    write_json,
)


def digest(path: str | os.PathLike[str]) -> str:
    """Returns the SHA-256 of a file's content, or of all names and contents in a folder.

    Args:
      path: path of a file or folder; symbolic links are followed.

    Raises:
      ElqError: there is nothing at `path`.
    """
    path = _existing(path)
    if path.is_dir():
        whole = hashlib.sha256()
        for name, file in _files_below(path):
            whole.update(f"{digest(file)} {name!r}\n".encode())
        return whole.hexdigest()
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stamp(path: str | os.PathLike[str]) -> list[Any]:
    """Returns [size, time in ns] of a file; of a folder, those of all its files.

    It is quick, so it replaces the digest of files that are too large to read.

    Raises:
      ElqError: there is nothing at `path`.
    """
    path = _existing(path)
    if path.is_dir():
        return [[name, *stamp(file)] for name, file in _files_below(path)]
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


class ResumeRecord:
    """A JSON file that records the inputs from which the files beside it were made.

        record = ResumeRecord(folder / "inputs.json", {"catalogue": Path("a.jsonl"), "seed": 3})
        if not record.check():  # raises if there is a record of other inputs
            record.write()

    An input is a JSON value, or a `pathlib.Path`, which stands for the content of a file or folder:
    its SHA-256 is recorded, with sizes and times, so that files not touched since are not read
    again. The path itself does not count.

    Args:
      path: path of the record.
      inputs: values by name; mappings are compared entry by entry ("joint.batch_size").
      advice: text for the error message on what to do about other inputs.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        inputs: Mapping[str, Any],
        advice: str = "use the same again to resume, or write to another place",
    ):
        self.path = pathlib.Path(path)
        self._inputs, self._advice = dict(inputs), advice

    def check(self) -> bool:
        """Returns whether there is a record; raises if it is of other inputs.

        Raises:
          ElqError: the record is of other inputs, each of which is named with its recorded and
            present value; or it cannot be read.
        """
        recorded = self.read()
        if recorded is None:
            return False
        changes = self.changes(recorded)
        if changes:
            raise ElqError(
                f"{self.path.parent}: holds what was made from other inputs: {changes}; "
                f"{self._advice}"
            )
        return True

    def is_same(self) -> bool:
        """Returns whether there is a record of the same inputs; other inputs are not an error."""
        try:
            return self.check()
        except ElqError:
            return False

    def read(self) -> dict[str, Any] | None:
        """Reads the recorded inputs; None without a record.

        Raises:
          DataError: the file is not a record.
        """
        try:
            recorded = json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            message = f"not a record of inputs ({error}); {self._advice}"
            raise DataError(message, self.path) from error
        if not isinstance(recorded, dict):
            message = f"found {type(recorded).__name__}, expected an object; {self._advice}"
            raise DataError(message, self.path)
        return recorded

    def changes(self, recorded: Mapping[str, Any]) -> str:
        """Returns "name (found X, now Y), ..." of the inputs that differ; "" where none does."""
        before, now = _flat(recorded, self._inputs), _flat(self._inputs, self._inputs)
        return ", ".join(
            _change(name, before.get(name), now.get(name))
            for name in sorted({*before, *now})
            if not _is_same(before.get(name), now.get(name))
        )

    def write(self) -> None:
        """Writes the record, which replaces an older one when it is whole."""
        write_json(self.path, _described(self._inputs))

    def remove(self) -> None:
        """Removes the record, if there is one."""
        self.path.unlink(missing_ok=True)


@contextlib.contextmanager
def resumable_folder(
    folder: str | os.PathLike[str], inputs: Mapping[str, Any], records: Sequence[str] = ()
) -> Iterator[pathlib.Path]:
    """Yields a temporary folder, `folder.partial`, that becomes `folder` when the block succeeds.

    If the block is interrupted or killed, or the disk is full, the temporary folder stays. The next
    call with the same inputs yields it with its files, to be resumed; a call with other inputs
    empties it first. After any other ElqError it is removed, since only other inputs can help.

    Args:
      folder: path that is absent, or an empty folder.
      inputs: inputs that the result depends on, as for a `ResumeRecord`.
      records: names of files in it that only resuming needs; they are not part of the result.

    Raises:
      ElqError: the folder exists, another process is writing it, or `folder.partial` was not made
        by such a call.
    """
    final = pathlib.Path(os.path.realpath(folder))
    if os.path.lexists(final) and not is_empty_folder(final):
        raise ElqError(f"{folder}: exists; give another name, or remove it first")
    partial = final.with_name(f"{final.name}.partial")
    record = ResumeRecord(partial / "inputs.json", inputs)
    make_folder(partial)
    with folder_lock(partial):
        if record.is_same():
            print(f"{partial}: resuming with what is there", file=sys.stderr)
            _empty(partial, "**/.*")
        elif not is_empty_folder(partial, ".lock"):
            names = [path.name for path in partial.iterdir()]
            if record.path.name not in names and not all(name.startswith(".") for name in names):
                raise ElqError(f"{partial}: was not left by an interrupted run; move it elsewhere")
            print(f"{partial}: made from other inputs, so begun again", file=sys.stderr)
            _empty(partial, "*")
        record.write()
        try:
            yield partial
        except DiskFullError:
            raise
        except ElqError:
            shutil.rmtree(partial)
            raise
        for name in (record.path.name, *records):
            (partial / name).unlink(missing_ok=True)
    take_place(partial, final)


def _empty(folder: pathlib.Path, pattern: str) -> None:
    """Removes files and folders by patterns, such as unfinished files of a killed run."""
    for path in list(folder.glob(pattern)):
        if path == folder / ".lock":
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _existing(path: str | os.PathLike[str]) -> pathlib.Path:
    path = pathlib.Path(path)
    if not path.exists():
        raise ElqError(f"{path}: no such file; give one that exists")
    return path


def _flat(tree: Mapping[str, Any], inputs: Any, prefix: str = "") -> dict[str, Any]:
    """Returns nested inputs as {"joint.batch_size": 64, ...}, files as their records."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        own = inputs.get(name) if isinstance(inputs, Mapping) else None
        if isinstance(value, Mapping) and not isinstance(own, pathlib.Path):
            flat |= _flat(value, own, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _described(value: Any) -> Any:
    """Returns the recorded form of an input."""
    if isinstance(value, Mapping):
        return {name: _described(entry) for name, entry in value.items()}
    if isinstance(value, pathlib.Path):
        return {"sha256": digest(value), "stamp": stamp(value)}
    return plain_json(value)


def _is_same(recorded: Any, value: Any) -> bool:
    if not isinstance(value, pathlib.Path):
        return recorded == plain_json(value)
    if not isinstance(recorded, Mapping):
        return False
    return recorded.get("stamp") == stamp(value) or recorded.get("sha256") == digest(value)


def _files_below(folder: pathlib.Path) -> Iterator[tuple[str, pathlib.Path]]:
    """Lists the files of a folder as (name in it, path), sorted, without hidden files."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            for name, file in _files_below(path):
                yield f"{path.name}/{name}", file
        else:
            yield path.name, path


def _change(name: str, recorded: Any, value: Any) -> str:
    if not isinstance(value, pathlib.Path):
        return f"{name} (found {recorded!r}, now {plain_json(value)!r})"
    content = recorded.get("sha256", "nothing") if isinstance(recorded, Mapping) else recorded
    return f"{name} (found content {str(content)[:12]}, now {digest(value)[:12]} in {value})"
