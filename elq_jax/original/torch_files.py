"""Reads and writes files of `torch.save` without torch, one tensor at a time.

Both formats hold a pickle, in which tensors refer to storages, and the bytes of the storages.

zip     (torch >= 1.6) members NAME/data.pkl and, not compressed, NAME/data/KEY for each storage.
legacy  (older torch) five pickles: magic number, version, machine, the object, storage keys; then
        for each key the number of elements (int64) and the elements.

The pickle may hold dictionaries, lists, numbers, strings and tensors only, as with torch's
`weights_only=True`; anything else is refused and never run. Tensors stay on disk until they are
used, so a file of any size is opened in milliseconds and read in bounded memory.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import pathlib
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from elq_jax.core.errors import DataError, ElqError
from elq_jax.storage.files import atomic_write

_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_PROTOCOL_VERSION = 1001
_DTYPES = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}
_BLOCK_BYTES = 1 << 26


class _Sealed:
    """Base class of the objects that a pickle may contain but must not change.

    A pickle can set the state of an object (opcode BUILD), by calling the object's method
    `__setstate__` or by writing into its attributes. If that were an object of Python or NumPy,
    which the whole process shares, the change would outlast the file.
    """

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("it sets the state of an object, which tensors do not need")


class _StorageType(_Sealed):
    """A type of elements as it stands in a pickle, such as torch.FloatStorage."""

    __slots__ = ("dtype",)

    def __init__(self, dtype: np.dtype):
        self.dtype = dtype


class _Function(_Sealed):
    """A function that a pickle may call."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]):
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)


@dataclasses.dataclass
class _Storage(_Sealed):
    """Elements that tensors are views of; they start at byte `offset` of the file."""

    dtype: np.dtype
    size: int
    offset: int = -1


@dataclasses.dataclass(frozen=True, eq=False)
class StoredTensor(_Sealed):
    """A tensor in a file, which is not read yet.

    Attributes:
      path: path of the file.
      storage: elements that the tensor is a view of.
      first: number of the storage's element that the tensor begins with.
      shape: shape of the tensor.
      strides: strides of the tensor, in elements.
    """

    path: pathlib.Path
    storage: _Storage
    first: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype:
        """Returns the type of the elements."""
        return self.storage.dtype

    @property
    def extent(self) -> int:
        """Returns the number of the storage's elements from the tensor's first to its last."""
        if 0 in self.shape:
            return 0
        steps = zip(self.shape, self.strides, strict=True)
        return 1 + sum((size - 1) * stride for size, stride in steps)

    def map(self) -> np.ndarray:
        """Maps the tensor into memory, read-only; values are read from disk when they are used."""
        if not self.extent:
            return np.zeros(self.shape, self.dtype)
        offset = self.storage.offset + self.first * self.dtype.itemsize
        elements = np.memmap(self.path, self.dtype, "r", offset, (self.extent,)).view(np.ndarray)
        strides = [stride * self.dtype.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(elements, self.shape, strides, writeable=False)

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Reads rows `start` to `stop` - 1 of the first axis: [stop - start, ...], a copy.

        Unlike the pages of `map`, rows that were read do not stay in the memory of the process.

        Raises:
          ElqError: there are no such rows, or the tensor is not stored row by row.
        """
        if not self.shape or not 0 <= start <= stop <= self.shape[0]:
            raise ElqError(f"rows {start} to {stop}: not in the tensor of shape {self.shape}")
        row_size = int(np.prod(self.shape[1:], dtype=np.int64))
        if self.strides != _row_major(self.shape):
            message = "the tensor is not stored row by row; save it again after .contiguous()"
            raise DataError(message, self.path)
        out = np.empty((stop - start, *self.shape[1:]), self.dtype)
        with open(self.path, "rb", buffering=0) as file:
            file.seek(self.storage.offset + (self.first + start * row_size) * self.dtype.itemsize)
            rest = memoryview(out.reshape(-1).view(np.uint8))
            while rest:
                count = file.readinto(rest)
                if not count:
                    raise DataError("became shorter while it was read; run again", self.path)
                rest = rest[count:]
        return out


def open_torch_file(path: str | os.PathLike[str]) -> Any:
    """Opens a file that `torch.save` wrote, without torch and in little memory.

    Args:
      path: path of a file of either format.

    Returns:
      the saved object: a `StoredTensor`, or dicts and lists of such tensors, numbers and strings.

    Raises:
      ElqError: there is no such file.
      DataError: the file was not written by torch.save, is cut short, or holds objects other than
        tensors.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise ElqError(f"{path}: no such file; give a file that torch.save wrote")
    try:
        with open(path, "rb") as file:
            start = file.read(4)
            file.seek(0)
            if start == b"PK\x03\x04":
                return _open_zip(file, path)
            return _open_legacy(file, path)
    except (ElqError, OSError):
        raise
    except (EOFError, zipfile.BadZipFile, struct.error) as error:
        raise _cut_short(path, str(error) or "it ends too early") from error
    except Exception as error:  # A damaged pickle can raise any exception.
        if isinstance(error, pickle.UnpicklingError) and "truncated" in str(error):
            raise _cut_short(path, str(error)) from error
        raise _foreign(path, f"{type(error).__name__}: {error}") from error


def _foreign(path: pathlib.Path, reason: str) -> DataError:
    message = f"not a file of torch.save ({reason}); give a file of tensors that torch.save wrote"
    return DataError(message, path)


def _cut_short(path: pathlib.Path, reason: str) -> DataError:
    message = f"not a whole file of torch.save ({reason}); copy or download it again"
    return DataError(message, path)


def _open_legacy(file: BinaryIO, path: pathlib.Path) -> Any:
    if file.peek(1)[:1] != b"\x80":  # the first byte of every pickle of protocol 2
        raise _foreign(path, f"it begins with {file.read(8)!r}" if file.peek(1) else "it is empty")
    storages: dict[str, _Storage] = {}

    def load() -> Any:
        return _TensorUnpickler(file, path, storages).load()

    if load() != _MAGIC_NUMBER:
        raise _foreign(path, "it is a pickle of something else")
    version, machine = load(), load()
    if version != _PROTOCOL_VERSION:
        raise _foreign(path, f"its version is {version}, expected {_PROTOCOL_VERSION}")
    _check_byte_order(machine.get("little_endian", True), path)
    result, keys = load(), load()
    size, offset = os.fstat(file.fileno()).st_size, file.tell()
    for key in keys:
        file.seek(offset)
        (elements,) = struct.unpack("<q", file.read(8))
        storage = storages[key]
        if elements != storage.size:
            raise _foreign(path, f"storage {key} has {elements} elements, expected {storage.size}")
        storage.offset = offset + 8
        offset = storage.offset + elements * storage.dtype.itemsize
        if offset > size:
            raise _cut_short(path, f"it has {size:,} bytes, expected at least {offset:,}")
    _check_storages(storages, path)
    return result


def _open_zip(file: BinaryIO, path: pathlib.Path) -> Any:
    with zipfile.ZipFile(file) as archive:
        members = {info.filename: info for info in archive.infolist()}
        name = next((name for name in members if name.endswith("/data.pkl")), None)
        if name is None:
            raise _foreign(path, "it is a zip file without data.pkl")
        root = name.removesuffix("data.pkl")
        if f"{root}byteorder" in members:
            _check_byte_order(archive.read(f"{root}byteorder") == b"little", path)
        storages: dict[str, _Storage] = {}
        with archive.open(name) as pickled:
            result = _TensorUnpickler(pickled, path, storages).load()
    for key, storage in storages.items():
        info = members.get(f"{root}data/{key}")
        if info is None or info.file_size != storage.size * storage.dtype.itemsize:
            problem = "is missing" if info is None else f"has {info.file_size:,} bytes"
            raise _cut_short(path, f"storage {key} {problem}")
        if info.compress_type != zipfile.ZIP_STORED:
            raise _foreign(path, "it is compressed, which torch.save never does")
        # The local header may be longer than the one that `archive` read.
        file.seek(info.header_offset + 26)
        name_size, extra_size = struct.unpack("<HH", file.read(4))
        storage.offset = info.header_offset + 30 + name_size + extra_size
        end, size = storage.offset + info.file_size, os.fstat(file.fileno()).st_size
        if end > size:
            raise _cut_short(path, f"storage {key} ends at byte {end:,}, the file at {size:,}")
    _check_storages(storages, path)
    return result


def _check_byte_order(little_endian: bool, path: pathlib.Path) -> None:
    if not little_endian:
        raise DataError(
            "was written on a big-endian machine, which is not supported; load it with torch on a "
            "little-endian machine, such as any x86 computer, and save it again",
            path,
        )


def _check_storages(storages: dict[str, _Storage], path: pathlib.Path) -> None:
    for key, storage in storages.items():
        if storage.offset < 0:
            raise _cut_short(path, f"storage {key} is missing")


class _TensorUnpickler(pickle.Unpickler):
    """Unpickles state dicts and tensors, and refuses everything else."""

    def __init__(self, file: BinaryIO, path: pathlib.Path, storages: dict[str, _Storage]):
        super().__init__(file, encoding="utf-8")
        self._path, self._storages = path, storages
        self._known: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): _Function(collections.OrderedDict),
            ("torch", "Size"): _Function(tuple),
            ("torch._utils", "_rebuild_tensor"): _Function(self._tensor),
            ("torch._utils", "_rebuild_tensor_v2"): _Function(self._tensor),
            ("torch._utils", "_rebuild_parameter"): _Function(lambda data, *_: data),
        }
        self._known |= {("torch", name): _StorageType(dtype) for name, dtype in _DTYPES.items()}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._known:
            message = (
                f"holds a {module}.{name}; expected tensors only; save the state_dict() of a "
                "model, not the model itself"
            )
            raise DataError(message, self._path)
        return self._known[module, name]

    def persistent_load(self, reference: Sequence[Any]) -> tuple[_Storage, int]:
        """Returns the storage of a reference and the number of its first element in it."""
        kind, dtype, key, _, size, *view = reference
        if kind != "storage" or not isinstance(dtype, _StorageType):
            raise _foreign(self._path, f"it refers to a {kind!r} of {type(dtype).__name__}")
        if not isinstance(key, str) or not _are_counts([size]):
            raise _foreign(self._path, f"it has a storage {key!r} of {size!r} elements")
        storage = self._storages.setdefault(key, _Storage(dtype.dtype, size))
        return storage, (view[0][1] if view and view[0] else 0)

    def _tensor(
        self,
        storage: tuple[_Storage, int],
        first: int,
        shape: Sequence[int],
        strides: Sequence[int],
        *_: Any,
    ) -> StoredTensor:
        storage, start = storage
        if not _are_counts([start, first, *shape, *strides]):
            message = f"it has a tensor of shape {shape}, strides {strides}, from element {first}"
            raise _foreign(self._path, message)
        tensor = StoredTensor(self._path, storage, start + first, tuple(shape), tuple(strides))
        last = tensor.first + tensor.extent - 1
        if last >= storage.size:
            raise _foreign(
                self._path, f"it has a tensor of shape {tensor.shape} outside its storage"
            )
        return tensor


def _are_counts(values: Sequence[Any]) -> bool:
    """Returns whether all values are integers, at least 0."""
    return all(type(value) is int and value >= 0 for value in values)


def _row_major(shape: Sequence[int]) -> tuple[int, ...]:
    strides = np.cumprod([1, *(max(n, 1) for n in reversed(shape[1:]))])[::-1]
    return tuple(int(stride) for stride in strides[: len(shape)])


def write_torch_file(
    path: str | os.PathLike[str], tensors: np.ndarray | Mapping[str, np.ndarray]
) -> None:
    """Writes a file for `torch.load`, in the legacy format, which every version of torch can read.

    Args:
      path: path of the file, which appears when it is whole.
      tensors: array, or arrays by name (a state dict). They are written in blocks, so memory-mapped
        arrays may be larger than the memory.

    Raises:
      ElqError: torch has no such type of elements.
      DiskFullError: the disk is full.
    """
    storages: dict[str, np.ndarray] = {}
    if isinstance(tensors, Mapping):
        saved: Any = collections.OrderedDict(
            (name, _Tensor(array, storages)) for name, array in tensors.items()
        )
    else:
        saved = _Tensor(tensors, storages)
    machine = {
        "protocol_version": _PROTOCOL_VERSION,
        "little_endian": True,
        "type_sizes": {"short": 2, "int": 4, "long": 4},
    }
    with atomic_write(path) as file:
        for part in (_MAGIC_NUMBER, _PROTOCOL_VERSION, machine, saved, list(storages)):
            _TensorPickler(file, protocol=2).dump(part)
        for array in storages.values():
            file.write(struct.pack("<q", array.size))
            rows = np.atleast_1d(array)
            step = max(1, _BLOCK_BYTES * len(rows) // max(array.nbytes, 1))
            for start in range(0, len(rows), step):
                block = np.ascontiguousarray(rows[start : start + step])
                file.write(block.view(np.uint8).data)


class _Name:
    """A name in one of torch's modules, which can be pickled without torch."""

    def __init__(self, module: str, name: str):
        self.opcode = f"c{module}\n{name}\n".encode()

    def __call__(self) -> None:
        """Does nothing; `pickle` only accepts names that can be called."""


class _Tensor:
    """An array that is pickled as a tensor of torch."""

    def __init__(self, array: np.ndarray, storages: dict[str, np.ndarray]):
        names = {dtype: name for name, dtype in _DTYPES.items()}
        if array.dtype not in names:
            raise ElqError(
                f"{array.dtype}: not a type of torch; expected one of {', '.join(map(str, names))}"
            )
        self.shape, key = array.shape, str(len(storages))
        storages[key] = array
        kind = _Name("torch", names[array.dtype])
        self.storage = _Reference(("storage", kind, key, "cpu", array.size, None))

    def __reduce__(self) -> tuple[Any, ...]:
        strides = _row_major(self.shape)
        hooks: dict[str, Any] = collections.OrderedDict()
        arguments = (self.storage, 0, self.shape, strides, False, hooks)
        return _Name("torch._utils", "_rebuild_tensor_v2"), arguments


class _Reference(tuple):
    """A reference to a storage, as it stands in a pickle."""


class _TensorPickler(pickle._Pickler):  # the one in Python, whose `save` can be replaced
    """Pickles names of torch and references to storages."""

    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        if isinstance(obj, _Name):
            self.write(obj.opcode)
        else:
            super().save(obj, save_persistent_id)

    def persistent_id(self, obj: Any) -> tuple[Any, ...] | None:
        return tuple(obj) if isinstance(obj, _Reference) else None
