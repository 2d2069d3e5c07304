"""Defines the base class of every index, its files, and the registry that finds it by name.

A new index is one file:

    @INDEXES.register("flat")
    class FlatIndex(Index):
        @dataclasses.dataclass(frozen=True)
        class Settings:
            \"\"\"How vectors are stored.

            Attributes:
              dtype: number format.
            \"\"\"

            dtype: Literal["float32", "float16"] = "float32"

        def __init__(self, embeddings, settings, table):
            super().__init__(embeddings, settings)
            self._table = table

        @classmethod
        def build(cls, embeddings, settings=None, *, devices=None):
            settings = settings or cls.Settings()
            return cls(embeddings, settings, embeddings[:].astype(settings.dtype))

        def nearest(self, queries, k):
            scores = queries @ self._table.T
            rows = np.argsort(-scores, axis=1)[:, :k]
            return np.take_along_axis(scores, rows, axis=1), rows

        def write(self, folder):
            np.save(folder / "table.npy", self._table)

        @classmethod
        def read(cls, folder, embeddings, settings):
            return cls(embeddings, settings, np.load(folder / "table.npy", mmap_mode="r"))

`build_index --index my_indexes:flat --dtype float16` then builds it: flags, the description
index.json, checksums and the check against the embeddings come from here.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import hashlib
import os
import pathlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import msgspec
import numpy as np

from elq_jax.core.errors import ElqError
from elq_jax.core.registry import Registry
from elq_jax.core.settings import check_settings, make_settings
from elq_jax.entities.embeddings import Embeddings, first_bad_row
from elq_jax.storage.files import atomic_folder, write_json

if TYPE_CHECKING:
    from typing import Self

    import jax

FORMAT = "elq_jax index, version 2"
_SCANN_FORMAT = "elq_jax ScaNN index, version 1"  # written before there were other indexes
DESCRIPTION, REPORT = "index.json", "report.json"
_AGAIN = "build it again: python -m elq_jax.build_index"

INDEXES: Registry[type[Index]] = Registry("index", "elq_jax.retrieval", "elq_jax.retrieval.opening")


class UnavailableError(ElqError):
    """Error: an index cannot be used on this machine, for instance because a package is missing."""


@dataclasses.dataclass(frozen=True)
class NoSettings:
    """Settings of an index without settings."""


class Index(abc.ABC):
    """An index finds the entities nearest to a query.

    Args:
      embeddings: [E, D] entity vectors that are searched.
      settings: settings of the class's own `Settings`; None: all defaults.

    Attributes:
      Settings: dataclass of the index's settings; see `core.settings`.
      unnamed_settings: values of those settings that files of earlier versions do not name.
      has_files: whether `write` saves what was built. An index without files is built again
        whenever a linker is opened.
      is_compiled: whether `nearest` is compiled for every k, and exact, so that the best k of more
        rows are those of a search for k.
      least_k: smallest k that is searched for, where `is_compiled`; of more rows than asked for,
        the best are returned. 1 by default: one program for each k.
      shape: (E, D).
      settings: settings that the index was built with.

    Raises:
      ElqError: a setting of the wrong type or out of range.
    """

    Settings: ClassVar[type] = NoSettings
    unnamed_settings: ClassVar[Mapping[str, Any]] = {}
    has_files: ClassVar[bool] = True
    is_compiled: ClassVar[bool] = False
    least_k: int = 1

    def __init__(self, embeddings: Embeddings | np.ndarray | jax.Array, settings: Any = None):
        self.settings = self.Settings() if settings is None else settings
        check_settings(self.settings)
        rows, width = embeddings.shape
        self.shape: tuple[int, int] = (rows, width)
        self._fingerprint = fingerprint(embeddings) if self.has_files else ""

    @property
    def name(self) -> str:
        """Returns the name of the index, for `--index` and `EntityLinker.from_pretrained`."""
        return INDEXES.name_of(type(self))

    @classmethod
    @abc.abstractmethod
    def build(
        cls,
        embeddings: Embeddings | np.ndarray,
        settings: Any = None,
        *,
        devices: Sequence[jax.Device] | None = None,
    ) -> Index:
        """Builds an index in memory.

        Args:
          embeddings: [E, D] entity vectors.
          settings: settings of the class's `Settings`; None: all defaults.
          devices: devices that may search, of this process and perhaps others; None: all of this
            process. An index that searches on the host ignores them.

        Raises:
          ElqError: a setting out of range, NaN or infinity in a row.
          UnavailableError: the index cannot be used on this machine.
        """

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the k entities with the highest inner product, as far as the index finds them.

        Args:
          queries: [Q, D] float, finite.
          k: number of entities per query, 1 <= k <= E.

        Returns:
          scores [Q, k] float32, descending, and rows [Q, k] int32, no row twice.

        Raises:
          ElqError: wrong width, NaN or infinity in a query, k out of range.
        """
        queries = check_queries(queries, k, self.shape)
        if not len(queries):
            return np.zeros((0, k), np.float32), np.zeros((0, k), np.int32)
        most = max(k, min(self.least_k, self.shape[0])) if self.is_compiled else k
        scores, rows = self.nearest(queries, most)
        return np.asarray(scores, np.float32)[:, :k], np.asarray(rows, np.int32)[:, :k]

    @abc.abstractmethod
    def nearest(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Finds the k best rows of queries [Q, D] float32, which `search` has checked; Q > 0."""

    def write(self, folder: pathlib.Path) -> None:
        """Writes the files of the index into an empty folder; `read` opens them."""
        raise NotImplementedError(f"{type(self).__qualname__} has files; it needs a method write")

    @classmethod
    def read(
        cls, folder: pathlib.Path, embeddings: Embeddings | np.ndarray, settings: Any
    ) -> Index:
        """Opens files of `write`, after a check that they are whole and of these embeddings."""
        raise NotImplementedError(f"{cls.__qualname__} has files; it needs a method read")

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes the index to a folder, which appears under its name when it is whole.

        Args:
          folder: path that is absent, an empty folder, or an older index, which is replaced.

        Raises:
          ElqError: the folder holds something else, or this kind of index has no files.
          DiskFullError: the disk is full; an older index is still there.
        """
        if not self.has_files:
            raise ElqError(
                f"index {self.name}: has no files, since it is built from the embeddings at "
                "every start; do not save it"
            )
        try:
            with atomic_folder(folder, "an index", is_saved) as temporary:
                with _room_in(temporary):
                    self.write(temporary)
                write_json(temporary / DESCRIPTION, self._describe(temporary))
        except RuntimeError as error:  # of a library in C++
            raise ElqError(f"{folder}: the index cannot be written ({error})") from error

    def _describe(self, folder: pathlib.Path) -> dict[str, Any]:
        digests = _digests(folder, _files(folder))
        description = Description(
            format=FORMAT,
            index=self.name,
            shape=self.shape,
            settings=dataclasses.asdict(self.settings),
            embeddings=self._fingerprint,
            sha256=digests,
            parts=_count_parts(digests),
        )
        return msgspec.to_builtins(description)

    @classmethod
    def open(cls, folder: str | os.PathLike[str], embeddings: Embeddings | np.ndarray) -> Self:
        """Opens a saved index after checking that its files are whole.

        Args:
          folder: path of a folder that `save` wrote.
          embeddings: entity vectors that it must have been built from.

        Raises:
          ElqError: the index does not exist, is damaged, or was built from other embeddings.
          UnavailableError: the index cannot be used on this machine.
        """
        folder = pathlib.Path(folder)
        name = INDEXES.name_of(cls)
        if not is_saved(folder):
            raise ElqError(
                f"{folder}: no {name} index here ({DESCRIPTION} is missing); build one: "
                f"python -m elq_jax.build_index --index {name}"
            )
        description = read_description(folder)
        if description.index != name:
            raise ElqError(
                f"{folder}: found a {description.index} index, expected {name}; give --index "
                f"{description.index}, or build one: python -m elq_jax.build_index --index {name}"
            )
        shape = tuple(embeddings.shape)
        if description.shape != shape or description.embeddings != fingerprint(embeddings):
            raise ElqError(f"{folder}: was built from other embeddings than the linker's; {_AGAIN}")
        check_files(folder, description)
        return cls.read(folder, embeddings, cls.settings_of(folder))

    @classmethod
    def settings_of(cls, folder: str | os.PathLike[str]) -> Any:
        """Reads the settings of a saved index of this class.

        Raises:
          ElqError: they are damaged.
        """
        path = pathlib.Path(folder) / DESCRIPTION
        try:
            settings = {**cls.unnamed_settings, **read_description(folder).settings}
            return make_settings(cls.Settings, settings)
        except ElqError as error:
            raise ElqError(f"{path}: damaged (settings: {error}); {_AGAIN}") from error


class Description(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file index.json of a saved index.

    Attributes:
      format: version of the file, `FORMAT`.
      index: name in `INDEXES`.
      shape: shape of the embeddings, (E, D).
      settings: all settings of the index, by name.
      embeddings: fingerprint of the embeddings that it was built from.
      sha256: digest of every other file by its path in the folder.
      parts: number of parts of the index, at least 1.
    """

    format: str
    index: str
    shape: tuple[Annotated[int, msgspec.Meta(ge=1)], Annotated[int, msgspec.Meta(ge=1)]]
    settings: dict[str, Any]
    embeddings: str
    sha256: Annotated[dict[str, str], msgspec.Meta(min_length=1)]
    parts: Annotated[int, msgspec.Meta(ge=1)] = 1


def read_description(folder: str | os.PathLike[str]) -> Description:
    """Reads the index.json of a saved index.

    Raises:
      ElqError: the file is damaged, or of an unknown format.
    """
    path = pathlib.Path(folder) / DESCRIPTION
    try:
        content = msgspec.json.decode(path.read_bytes())
        if not isinstance(content, dict):
            raise msgspec.ValidationError("Expected `object`")
        found = content.get("format")
        if found == _SCANN_FORMAT:
            content = _from_version_1(content)
        elif found != FORMAT:
            raise ElqError(
                f"{path}: found format {found!r}, this program reads {FORMAT!r}; {_AGAIN}"
            )
        return msgspec.convert(content, Description)
    except (OSError, msgspec.DecodeError) as error:
        raise ElqError(f"{path}: damaged ({error}); {_AGAIN}") from error


def _from_version_1(content: Mapping[str, Any]) -> dict[str, Any]:
    """Reads the description of a ScaNN index in its first format."""
    content = dict(content)
    content["format"], content["index"] = FORMAT, content.pop("kind", None)
    if isinstance(content.get("settings"), dict):
        settings = content["settings"] = dict(content["settings"])
        settings["method"] = settings.pop("kind", None)
    return content


def is_saved(folder: str | os.PathLike[str]) -> bool:
    """Returns whether `folder` holds a saved index."""
    return (pathlib.Path(folder) / DESCRIPTION).is_file()


def check_queries(queries: np.ndarray, k: int, shape: tuple[int, int]) -> np.ndarray:
    """Checks the arguments of `search`; returns the queries as float32 [Q, D]."""
    queries = np.asarray(queries, np.float32)
    rows, width = shape
    if queries.ndim != 2 or queries.shape[1] != width:
        raise ElqError(f"queries: found shape {queries.shape}, expected (Q, {width})")
    if not 1 <= k <= rows:
        raise ElqError(f"k = {k}: expected 1 <= k <= {rows}, the number of entities")
    bad = first_bad_row(queries)
    if bad is not None:
        raise ElqError(
            f"queries: row {bad} holds NaN or infinity; check the parameters of the question "
            "encoder"
        )
    return queries


@contextlib.contextmanager
def _room_in(folder: pathlib.Path) -> Iterator[None]:
    """Checks, when a library fails to write, for a full disk: ScaNN only says "I/O error"."""
    try:
        yield
    except RuntimeError:
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, 1 << 20)
        raise


def fingerprint(embeddings: Embeddings | np.ndarray) -> str:
    """Identifies a table [E, D]: of opened embeddings from their description, else the values."""
    if isinstance(embeddings, Embeddings):
        return embeddings.fingerprint
    values = np.ascontiguousarray(embeddings, np.float32)
    return hashlib.sha256(values).hexdigest()[:32]


def _files(folder: pathlib.Path) -> list[str]:
    """Lists the files of a saved index except description and report, by path in the folder.

    Raises:
      ElqError: a folder in it is a symbolic link, whose files would not be seen.
    """
    everything = list(folder.rglob("*"))
    for path in everything:
        if path.is_symlink() and not path.is_file():
            raise ElqError(f"{path}: a symbolic link, expected a file or folder; {_AGAIN}")
    paths = (path.relative_to(folder) for path in everything if path.is_file())
    own = (path for path in paths if not any(part.startswith(".") for part in path.parts))
    return sorted({path.as_posix() for path in own} - {DESCRIPTION, REPORT})


def _digests(folder: pathlib.Path, names: Sequence[str]) -> dict[str, str]:
    def digest(name: str) -> str:
        with (folder / name).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    with ThreadPoolExecutor() as pool:
        return dict(zip(names, pool.map(digest, names), strict=True))


def _count_parts(names: Mapping[str, str]) -> int:
    return max(1, len({name.partition("/")[0] for name in names if "/" in name}))


def check_files(folder: pathlib.Path, description: Description) -> None:
    """Compares the files of a saved index with their digests, since libraries crash on damage.

    Raises:
      ElqError: a file is missing, damaged, or has no digest.
    """
    expected, present = description.sha256, _files(folder)
    if missing := sorted(expected.keys() - set(present)):
        raise ElqError(f"{folder / missing[0]}: missing or damaged; {_AGAIN}")
    if unknown := sorted(set(present) - expected.keys()):
        raise ElqError(
            f"{folder / unknown[0]}: {DESCRIPTION} has no digest of it; remove what is not part "
            f"of the index, or {_AGAIN}"
        )
    if description.parts != _count_parts(expected):
        raise ElqError(
            f"{folder / DESCRIPTION}: damaged (parts: {description.parts}; there are "
            f"{_count_parts(expected)}); {_AGAIN}"
        )
    for name, digest in _digests(folder, present).items():
        if digest != expected[name]:
            raise ElqError(f"{folder / name}: missing or damaged; {_AGAIN}")
