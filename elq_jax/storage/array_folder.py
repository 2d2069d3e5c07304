"""Keeps arrays about a catalogue in a folder, with a description that has their checksums."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from elq_jax.core.errors import ElqError
from elq_jax.storage.checksums import are_cheap, check_digest, read_json
from elq_jax.storage.files import array_digest, atomic_folder, map_array, save_array, write_json


class Description(Protocol):
    """What all descriptions have.

    Attributes:
      catalogue_fingerprint: fingerprint of the catalogue that the arrays are about.
      sha256: checksums of the arrays by the names of their files.
    """

    @property
    def catalogue_fingerprint(self) -> str: ...

    @property
    def sha256(self) -> Mapping[str, str]: ...


D = TypeVar("D", bound=Description)


@dataclasses.dataclass(frozen=True)
class ArrayFolder(Generic[D]):
    """The form of a folder of arrays, one file NAME.npy each, and a JSON file that describes them.

    Attributes:
      what: what the arrays hold of a catalogue, such as "names".
      file: name of the description.
      description: msgspec type of the description; has `format_version` too.
      format_version: version of the files.
      dtypes: dtypes of the arrays by their names.
      again: what to do about a folder that cannot be used.
    """

    what: str
    file: str
    description: type[D]
    format_version: int
    dtypes: Mapping[str, type[np.generic]]
    again: str

    def save(
        self, folder: str | os.PathLike[str], arrays: Mapping[str, np.ndarray], **fields: Any
    ) -> None:
        """Writes a folder, which appears under its name when it is whole.

        Args:
          folder: path of the folder.
          arrays: arrays by their names.
          **fields: fields of the description but `format_version` and `sha256`.

        Raises:
          ElqError: `folder` exists and holds something else; the disk is full.
        """
        with atomic_folder(folder, f"an index of {self.what}", self._is_ours) as temporary:
            digests = {}
            for name, array in arrays.items():
                save_array(temporary / f"{name}.npy", array)
                digests[f"{name}.npy"] = array_digest(array)
            description = {"format_version": self.format_version, **fields, "sha256": digests}
            write_json(temporary / self.file, description)

    def read(self, folder: str | os.PathLike[str], catalogue_fingerprint: str | None = None) -> D:
        """Reads the description of a folder.

        Args:
          folder: path of the folder.
          catalogue_fingerprint: fingerprint of the catalogue to expect; None: not checked.

        Raises:
          ElqError: there is none, it is damaged, of another version, or of another catalogue.
        """
        path = pathlib.Path(folder) / self.file
        if not path.is_file():
            raise ElqError(
                f"{folder}: no index of {self.what} here ({self.file} is missing); {self.again}"
            )
        version = read_json(path, dict[str, Any], self.again).get("format_version")
        if version != self.format_version:
            raise ElqError(
                f"{path}: format version {version!r}, this program reads {self.format_version}; "
                f"{self.again}"
            )
        description = read_json(path, self.description, self.again)
        fingerprint = description.catalogue_fingerprint
        if catalogue_fingerprint not in (None, fingerprint):
            raise ElqError(
                f"{folder}: {self.what} of another catalogue (fingerprint {fingerprint}, expected "
                f"{catalogue_fingerprint}); {self.again}"
            )
        return description

    def map(
        self, folder: str | os.PathLike[str], shapes: Mapping[str, tuple[int, ...]]
    ) -> dict[str, np.ndarray]:
        """Maps the arrays of a folder; small ones are compared with their checksums.

        Args:
          folder: path of the folder.
          shapes: shapes of the arrays by their names.

        Raises:
          ElqError: an array is missing or damaged, or has another shape or dtype.
        """
        folder = pathlib.Path(folder)
        arrays = {
            name: map_array(folder / f"{name}.npy", self.dtypes[name], shape, self.again)
            for name, shape in shapes.items()
        }
        if are_cheap(folder.glob("*.npy")):
            self.check(folder)
        return arrays

    def check(self, folder: str | os.PathLike[str]) -> None:
        """Compares all arrays of a folder with their checksums.

        Raises:
          DataError: an array is missing or damaged.
        """
        digests = self.read(folder).sha256
        for file in (f"{name}.npy" for name in self.dtypes):
            check_digest(pathlib.Path(folder) / file, digests.get(file, ""), self.again)

    def _is_ours(self, folder: pathlib.Path) -> bool:
        return (folder / self.file).is_file()
