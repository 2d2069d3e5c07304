"""Files of torch.save, read and written without torch."""

import pickle
import pickletools
import re
import struct

import ml_dtypes
import numpy as np
import pytest
from conftest import OWN_FIXTURES

from elq_jax.core.errors import ElqError
from elq_jax.original.torch_files import open_torch_file, write_torch_file

try:
    import torch
except ImportError:
    torch = None
needs_torch = pytest.mark.skipif(torch is None, reason="torch is not installed")

TABLE = np.arange(24, dtype=np.float32).reshape(4, 6)
OF_TORCH = {
    "table": TABLE,
    "view": TABLE[1:, 2:5],
    "transposed": TABLE.T,
    "half": (TABLE[:2, :2] / 8).astype(np.float16),
    "bfloat16": (TABLE[:2, :2] / 8).astype(ml_dtypes.bfloat16),
    "int64": np.array([[1, -2], [3, 2**40]]),
    "parameter": np.array([0.5, -1.5], np.float32),
    "bool": np.array([True, False]),
    "scalar": np.array(3.0),
    "empty": np.zeros((0, 3), np.float32),
}


@pytest.mark.parametrize("name", ["torch_legacy.bin", "torch_zip.bin"])
def test_files_of_torch(name):
    """Two files that torch wrote; the fixtures' README has the program."""
    found = open_torch_file(OWN_FIXTURES / name)
    assert list(found) == list(OF_TORCH)
    assert found["view"].storage is found["table"].storage
    for key, expected in OF_TORCH.items():
        array = found[key].map()
        assert (array.dtype, array.shape) == (expected.dtype, expected.shape)
        np.testing.assert_array_equal(array, expected)
    np.testing.assert_array_equal(found["table"].rows(1, 3), TABLE[1:3])


def test_writes_as_torch_does(tmp_path):
    """The same bytes and instructions, but for names of storages and how the pickle is packed."""
    write_torch_file(tmp_path / "ours", {"table": TABLE})
    (*ours, our_table), our_end = parts(tmp_path / "ours")
    (*theirs, their_tables), their_end = parts(OWN_FIXTURES / "torch_legacy.bin")
    assert ours == theirs
    assert instructions(our_table) == instructions(their_tables)[: len(instructions(our_table))]
    assert our_end == struct.pack("<q", 24) + TABLE.tobytes()
    assert our_end in their_end


def parts(path):
    """Magic number, version, machine and object as they are pickled; the storages."""
    with open(path, "rb") as file:
        sizes = [len(list(pickletools.genops(file))) and file.tell() for _ in range(5)]
        file.seek(0)
        content = file.read()
    starts = [0, *sizes]
    pickles = [content[starts[i] : starts[i + 1]] for i in range(4)]
    return pickles, content[sizes[-1] :]


def instructions(pickled):
    found = [(operation.name, value) for operation, value, _ in pickletools.genops(pickled)]
    packing = ("BINPUT", "MARK", "SETITEM", "SETITEMS", "STOP")
    return [
        (name, re.sub(r"^\d+$", "key", value) if isinstance(value, str) else value)
        for name, value in found
        if name not in packing
    ]


def test_damaged_zip(tmp_path):
    """A local header that says that its name is longer than the file."""
    content = bytearray((OWN_FIXTURES / "torch_zip.bin").read_bytes())
    header = content.index(b"torch_zip/data/0") - 30
    assert content[header : header + 4] == b"PK\x03\x04"
    content[header + 26 : header + 28] = b"\xff\xff"
    (tmp_path / "damaged").write_bytes(content)
    with pytest.raises(ElqError, match=r"damaged: not a whole file .*storage 0 ends at byte"):
        open_torch_file(tmp_path / "damaged")


@needs_torch
@pytest.mark.parametrize("new_format", [False, True])
def test_reads_what_torch_saves(new_format, tmp_path):
    """All types, views, transposes, parameters, empty and scalar tensors."""
    table = torch.arange(60.0).reshape(5, 12)
    saved = {
        "table": table,
        "view": table[1:, 2:7],
        "transposed": table.T,
        "parameter": torch.nn.Parameter(table),
        "scalar": torch.tensor(3.0),
        "empty": torch.zeros(0, 3),
        "nested": [torch.arange(6, dtype=torch.int64), {"bytes": torch.ones(3, dtype=torch.uint8)}],
        "number": 7,
    }
    for dtype in (torch.float64, torch.float16, torch.bfloat16, torch.int32, torch.bool):
        saved[str(dtype)] = table.to(dtype)
    path = tmp_path / "saved"
    torch.save(saved, path, _use_new_zipfile_serialization=new_format)
    found = open_torch_file(path)
    assert found.keys() == saved.keys()

    def check(found, saved):
        if isinstance(saved, dict | list):
            for key in saved if isinstance(saved, dict) else range(len(saved)):
                check(found[key], saved[key])
        elif isinstance(saved, torch.Tensor):
            array = found.map()
            assert array.shape == tuple(saved.shape)
            assert array.dtype.name == str(saved.dtype).removeprefix("torch.")
            expected = saved.detach().to(torch.float64).numpy()
            np.testing.assert_array_equal(array.astype(np.float64), expected)
        else:
            assert found == saved

    check(found, saved)
    np.testing.assert_array_equal(found["table"].rows(1, 4), table[1:4].numpy())
    with pytest.raises(ElqError, match="not stored row by row"):
        found["transposed"].rows(0, 2)
    with pytest.raises(ElqError, match="rows 4 to 6: not in the tensor"):
        found["table"].rows(4, 6)


@needs_torch
@pytest.mark.parametrize("new_format", [False, True])
def test_runs_nothing_from_a_file(new_format, tmp_path):
    """A pickled module, or anything that is no tensor, is refused before it is called."""
    path = tmp_path / "module"
    torch.save(torch.nn.Linear(2, 2), path, _use_new_zipfile_serialization=new_format)
    with pytest.raises(ElqError, match=r"module: holds a torch\.nn\.modules\.linear\.Linear"):
        open_torch_file(path)


@needs_torch
def test_torch_reads_what_is_written(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "matrix": rng.normal(size=(300, 7)).astype(np.float32),
        "transposed": rng.normal(size=(3, 5)).T,
        "scalar": np.array(3, np.int64),
        "empty": np.zeros((0, 3), np.float16),
    }
    write_torch_file(tmp_path / "file", arrays)
    state = torch.load(tmp_path / "file", weights_only=True)
    assert list(state) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(state[name].numpy(), array)
    write_torch_file(tmp_path / "file", arrays["matrix"])
    matrix = torch.load(tmp_path / "file", weights_only=True)
    np.testing.assert_array_equal(matrix.numpy(), arrays["matrix"])


# All that a pickle can take hold of, each with a state; that of the dtype would change nothing.
TENSOR = (
    b"ctorch._utils\n_rebuild_tensor\n"
    b"((Vstorage\nctorch\nFloatStorage\nV0\nVcpu\nK\x00NtQK\x00K\x00\x85K\x01\x85tR"
)
LITTLE_ENDIAN = b"(K\x03V<\nNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t"
HELD = {
    "dtype": b"ctorch\nFloatStorage\n" + LITTLE_ENDIAN,
    "class": b"ccollections\nOrderedDict\n}",
    "function": b"ctorch._utils\n_rebuild_tensor_v2\n}",
    "lambda": b"ctorch._utils\n_rebuild_parameter\n}",
    "tensor": TENSOR + b"}",
    "storage": b"ctorch._utils\n_rebuild_parameter\n(Vstorage\nctorch\nFloatStorage\nV0\nVcpu\n"
    b"K\x00NtQR}",
}


def write_legacy(path, pickled):
    """The legacy format with a pickle of one's own, and one empty storage."""
    first = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    content = [*(pickle.dumps(part, protocol=2) for part in first), b"\x80\x02" + pickled + b"."]
    content += [pickle.dumps(["0"], protocol=2), struct.pack("<q", 0)]
    path.write_bytes(b"".join(content))


def test_an_empty_tensor_written_by_hand(tmp_path):
    write_legacy(tmp_path / "file", TENSOR)
    assert open_torch_file(tmp_path / "file").map().shape == (0,)


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        (b"K\x00NtQ", b"J\xff\xff\xff\xffNtQ", "storage '0' of -1 elements"),
        (b"K\x00NtQ", b"V0\nNtQ", "storage '0' of '0' elements"),
        (b"V0\nVcpu", b"K\x00Vcpu", "storage 0 of 0 elements"),
        (b"K\x00\x85", b"G" + struct.pack(">d", 2.0) + b"\x85", r"a tensor of shape \(2.0,\)"),
        (b"K\x01\x85", b"J\xff\xff\xff\xff\x85", r"strides \(-1,\)"),
        (b"K\x00\x85", b"K\x01\x85", r"a tensor of shape \(1,\) outside its storage"),
    ],
)
def test_numbers_that_cannot_be(old, new, found, tmp_path):
    assert old in TENSOR
    write_legacy(tmp_path / "file", TENSOR.replace(old, new, 1))
    with pytest.raises(ElqError, match=f"file: not a file of torch.save .*{found}"):
        open_torch_file(tmp_path / "file")


@pytest.mark.parametrize("held", HELD)
def test_a_file_changes_nothing_that_outlasts_it(held, tmp_path):
    """The opcode BUILD ("b"), with which a pickle gives an object a state, is refused for all."""
    write_legacy(tmp_path / "built", HELD[held] + b"b")
    with pytest.raises(ElqError, match=r"built: not a file of torch.save .*sets the state"):
        open_torch_file(tmp_path / "built")


def test_a_type_of_the_process_stays_as_it_is(tmp_path):
    """A file that would make every float32 of the process big-endian."""
    big_endian = LITTLE_ENDIAN.replace(b"V<", b"V>")
    write_legacy(tmp_path / "file", b"ctorch\nFloatStorage\n" + big_endian + b"b")
    with pytest.raises(ElqError):
        open_torch_file(tmp_path / "file")
    assert np.array([1.0], "<f4").tobytes() == struct.pack("<f", 1.0)
