"""Files in PyTorch's format, made here without it, and by it where it is installed."""

import argparse
import collections
import sys
import zipfile
from collections import OrderedDict
from pathlib import PurePosixPath
from unittest import mock

import ml_dtypes
import numpy as np
import pytest

from croc_jax.checkpoints.torch_file import Opaque, read_torch_file
from tests.checkpoints.torch_writer import Storage, Tensor, fake_modules, write_torch


class Parameter:
    """A parameter with attributes of its own."""

    def __init__(self, tensor):
        self.tensor = tensor

    def __reduce__(self):
        utils = sys.modules["torch._utils"]
        return utils._rebuild_parameter_with_state, (self.tensor, True, OrderedDict(), {"tag": "x"})


class LaterTensor:
    """Of a type that has no storage of its own."""

    def __init__(self, storage, size, stride, dtype):
        self.parts = (storage, 0, size, stride, False, OrderedDict(), dtype)

    def __reduce__(self):
        return sys.modules["torch._utils"]._rebuild_tensor_v3, self.parts


class Stranger:
    def __reduce__(self):
        return print, ("this must not be called",)


@pytest.fixture
def save(tmp_path):
    """Writes a file as torch.save does."""
    return lambda contents, **options: write_torch(tmp_path / "weights.pth", contents, **options)


def test_arrays_and_plain_values_come_back(save):
    values = np.arange(24, dtype=np.float32)
    shared = Storage("0", values)
    contents = {
        "model": OrderedDict(a=Tensor(shared, 0, (4, 6), (6, 1)), b=Tensor(shared, 2, (3, 2), (2, 6))),
        "counts": Tensor(Storage("1", np.array([3, 4])), 0, (2,), (1,)),
        "scalar": Tensor(shared, 5, (), ()),
        "empty": Tensor(shared, 0, (0, 3), (3, 1)),
        "epoch": 7,
    }
    read = read_torch_file(save(contents))
    np.testing.assert_array_equal(read["model"]["a"], values.reshape(4, 6))
    np.testing.assert_array_equal(read["model"]["b"], [[2, 8], [4, 10], [6, 12]])
    np.testing.assert_array_equal(read["counts"], [3, 4])
    assert read["scalar"] == 5 and read["scalar"].shape == () and read["empty"].shape == (0, 3)
    assert read["epoch"] == 7


@pytest.mark.parametrize("legacy", [False, True])
def test_every_type_of_weights_is_read(save, legacy):
    values = np.random.default_rng(0).standard_normal((3, 4))
    arrays = {name: values.astype(name) for name in ("float32", "float64", "float16", "int64", "int8")}
    arrays |= {"bfloat16": values.astype(ml_dtypes.bfloat16), "scalar": np.full((), 3.0), "none": values[:0]}
    # Columns of one storage, as a transposed view.
    view = Tensor(Storage("shared", values.ravel()), 1, (4, 2), (1, 4))
    read = read_torch_file(file := save({"model": arrays, "view": view, "epoch": 3}, legacy=legacy))
    for name, array in arrays.items():
        np.testing.assert_array_equal(read["model"][name], array)
        assert read["model"][name].dtype == array.dtype
    np.testing.assert_array_equal(read["view"], values.ravel()[1:].reshape(-1)[[[0, 4], [1, 5], [2, 6], [3, 7]]])
    assert read["epoch"] == 3
    octets = file.read_bytes()
    for end in (40, len(octets) // 2, len(octets) - 1):
        file.write_bytes(octets[:end])
        with pytest.raises(ValueError, match="is corrupt.*get it again"):
            read_torch_file(file)


def test_nothing_in_a_file_is_called(save, capsys):
    # As Lightning and others save their settings.
    known = {"stranger": Stranger(), "args": argparse.Namespace(lr=1), "counts": collections.Counter("aab")}
    read = read_torch_file(save({**known, "path": PurePosixPath("a"), "set": {1}, "epoch": 1}))
    assert all(isinstance(read[name], Opaque) for name in ("stranger", "args", "counts", "path")) and read["epoch"] == 1
    assert capsys.readouterr().out == ""


def test_no_number_in_a_file_allocates_memory(save):
    values = Storage("0", np.zeros(2, np.float32))
    read = read_torch_file(save({"b": Tensor(values, 0, (10**6, 10**6), (0, 0))}))
    assert isinstance(read["b"], Opaque)
    data = zipfile.ZipFile(save({"epoch": 1})).read("weights/data.pkl")
    for broken in (b"r\xff\xff\xff\x7f" + data, data[:-1] + b"\x8e" + b"\xff" * 7 + b"\x0f."):
        with zipfile.ZipFile(file := save({}).parent / "memo.pth", "w") as archive:
            archive.writestr("weights/data.pkl", broken)
        with pytest.raises(ValueError, match="is corrupt"):
            read_torch_file(file)
    with pytest.raises(ValueError, match="is compressed, which torch.save does not do"):
        read_torch_file(save({"epoch": 1}, compression=zipfile.ZIP_DEFLATED))


def test_corrupt_files_are_explained(save, tmp_path):
    for size, stride, offset in (((5, 6), (6, 1), 0), ((4, 6), (6, 1), 1), ((2, 2), (30, 1), 0)):
        file = save({"a": Tensor(Storage("0", np.zeros(24, np.float32)), offset, size, stride)})
        with pytest.raises(ValueError, match="beyond its storage.*get it again"):
            read_torch_file(file)
    with pytest.raises(ValueError, match="is corrupt"):
        read_torch_file(save({"a": Tensor(Storage("0", np.zeros(2, np.float32)), 0, (2,), (1,))}, drop=("0",)))
    whole = save({"a": Tensor(Storage("0", np.zeros(2, np.float32)), 0, (2,), (1,))})
    data = zipfile.ZipFile(whole).read("weights/data.pkl").replace(b"storage", b"staroge", 1)
    with zipfile.ZipFile(tmp_path / "kind.pth", "w") as archive:
        archive.writestr("weights/data.pkl", data)
    with pytest.raises(
        ValueError, match=r"is corrupt \(UnpicklingError: a storage of an unknown kind, or a part of one\)"
    ):
        read_torch_file(tmp_path / "kind.pth")
    (tmp_path / "cut.pth").write_bytes(save({"a": 1}).read_bytes()[:40])
    with pytest.raises(ValueError, match="is corrupt.*get it again"):
        read_torch_file(tmp_path / "cut.pth")
    with zipfile.ZipFile(tmp_path / "other.pth", "w") as archive:
        archive.writestr("readme.txt", "hello")
    np.savez(tmp_path / "arrays.npz", a=np.ones(3))
    for name, message in (("other.pth", "holds no data.pkl"), ("arrays.npz", r"arrays of NumPy \(.npz\)")):
        with pytest.raises(ValueError, match=message):
            read_torch_file(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        read_torch_file(tmp_path / "none.pth")


def test_other_types_of_numbers_are_named(save):
    octets, modules = Storage("0", np.zeros(12, np.uint8)), fake_modules()
    contents = {
        "float8": LaterTensor(octets, (12,), (1,), modules["torch"].float8_e4m3fn),
        "complex": Tensor(Storage("1", np.zeros(2, np.complex64)), 0, (2,), (1,)),
        "parameter": Parameter(Tensor(Storage("2", np.ones(3, np.float32)), 0, (3,), (1,))),
    }
    with mock.patch.dict(sys.modules, modules):
        read = read_torch_file(save(contents))
    np.testing.assert_array_equal(read["parameter"], np.ones(3))
    for name, kind in {"float8": "float8_e4m3fn", "complex": "ComplexStorage"}.items():
        assert isinstance(read[name], Opaque) and type(read[name]).__name__ == kind


def test_files_of_pytorch_itself(tmp_path):
    torch = pytest.importorskip("torch")
    tensor = torch.arange(12.0).reshape(3, 4)
    contents = {
        "transposed": tensor.T,
        "parameter": torch.nn.Parameter(tensor[1:]),
        "tagged": torch.nn.Parameter(tensor[1:]),
        "tagged_tensor": tensor[2:],
        "counts": collections.Counter("aab"),
        "bfloat16": tensor.to(torch.bfloat16),
        "half": tensor.half(),
        "long": torch.arange(3),
        "args": argparse.Namespace(lr=1.0),
        "optimizer": torch.optim.SGD([torch.nn.Parameter(tensor)], lr=0.1, momentum=0.9).state_dict(),
        "dtype": torch.float32,
    }
    for name in ("tagged", "tagged_tensor"):
        contents[name].tag = "x"
    torch.save(contents, tmp_path / "file.pth")
    read = read_torch_file(tmp_path / "file.pth")
    for name in ("transposed", "half", "long", "tagged_tensor"):
        np.testing.assert_array_equal(read[name], contents[name].numpy())
    for name in ("parameter", "tagged"):
        np.testing.assert_array_equal(read[name], tensor[1:].numpy())
    np.testing.assert_array_equal(read["bfloat16"].astype(np.float32), tensor.numpy())
    assert read["optimizer"]["param_groups"][0]["lr"] == 0.1
