"""Files in PyTorch's format, made here without it, and by it where it is installed."""

import argparse
import collections
import io
import pickle
import sys
import types
import zipfile
from collections import OrderedDict

import numpy as np
import pytest

from croc_jax.checkpoints.torch_file import Opaque, read_torch_file


class Tensor:
    """Pickles as PyTorch's does: a call with a reference to its storage."""

    def __init__(self, storage, offset, size, stride):
        self.parts = (storage, offset, size, stride, False, OrderedDict())

    def __reduce__(self):
        return sys.modules["torch._utils"]._rebuild_tensor_v2, self.parts


class Storage:
    def __init__(self, key, values):
        self.key, self.values = key, values


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


STORAGES = {"float32": "FloatStorage", "int64": "LongStorage", "uint8": "UntypedStorage", "complex64": "ComplexStorage"}
GLOBALS = {
    "torch": (*STORAGES.values(), "float8_e4m3fn"),
    "torch._utils": ("_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_parameter_with_state"),
}


@pytest.fixture
def save(monkeypatch, tmp_path):
    """Writes a file as torch.save does."""
    for module, names in GLOBALS.items():
        made = types.ModuleType(module)
        for name in names:
            setattr(made, name, type(name, (), {"__module__": module, "__qualname__": name}))
        monkeypatch.setitem(sys.modules, module, made)

    def write(contents, name="weights.pth", drop=()):
        file, storages = tmp_path / name, {}

        class Pickler(pickle.Pickler):
            def persistent_id(self, obj):
                if isinstance(obj, Storage):
                    storages[obj.key] = obj.values
                    kind = getattr(sys.modules["torch"], STORAGES[obj.values.dtype.name])
                    return ("storage", kind, obj.key, "cpu", len(obj.values))
                return None

        data = io.BytesIO()
        Pickler(data, 2).dump(contents)
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("weights/data.pkl", data.getvalue())
            for key, values in storages.items():
                if key not in drop:
                    archive.writestr(f"weights/data/{key}", values.tobytes())
        return file

    return write


def test_arrays_and_plain_values_come_back(save):
    values = np.arange(24, dtype=np.float32)
    shared = Storage("0", values)
    contents = {
        "model": OrderedDict(a=Tensor(shared, 0, (4, 6), (6, 1)), b=Tensor(shared, 2, (3, 2), (2, 6))),
        "counts": Tensor(Storage("1", np.array([3, 4])), 0, (2,), (1,)),
        "scalar": Tensor(shared, 5, (), ()),
        "empty": Tensor(shared, 0, (0, 3), (3, 1)),
        "args": argparse.Namespace(arch="vit_small"),
        "epoch": 7,
    }
    read = read_torch_file(save(contents))
    np.testing.assert_array_equal(read["model"]["a"], values.reshape(4, 6))
    np.testing.assert_array_equal(read["model"]["b"], [[2, 8], [4, 10], [6, 12]])
    np.testing.assert_array_equal(read["counts"], [3, 4])
    assert read["scalar"] == 5 and read["scalar"].shape == () and read["empty"].shape == (0, 3)
    assert read["args"].arch == "vit_small" and read["epoch"] == 7


def test_nothing_in_a_file_is_called(save, capsys):
    read = read_torch_file(save({"stranger": Stranger(), "epoch": 1}))
    assert isinstance(read["stranger"], Opaque) and read["epoch"] == 1
    assert capsys.readouterr().out == ""


def test_corrupt_files_are_explained(save, tmp_path):
    for size, stride, offset in (((5, 6), (6, 1), 0), ((4, 6), (6, 1), 1), ((2, 2), (30, 1), 0)):
        file = save({"a": Tensor(Storage("0", np.zeros(24, np.float32)), offset, size, stride)})
        with pytest.raises(ValueError, match="beyond its storage.*get it again"):
            read_torch_file(file)
    with pytest.raises(ValueError, match="is corrupt"):
        read_torch_file(save({"a": Tensor(Storage("0", np.zeros(2, np.float32)), 0, (2,), (1,))}, drop=("0",)))
    (tmp_path / "old.pth").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ValueError, match="is no file of PyTorch 1.6 or later: load it in PyTorch and save it again"):
        read_torch_file(tmp_path / "old.pth")
    (tmp_path / "cut.pth").write_bytes(save({"a": 1}).read_bytes()[:40])
    with pytest.raises(ValueError, match="is corrupt.*get it again"):
        read_torch_file(tmp_path / "cut.pth")
    with zipfile.ZipFile(tmp_path / "other.pth", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(ValueError, match="holds no data.pkl"):
        read_torch_file(tmp_path / "other.pth")
    with pytest.raises(FileNotFoundError):
        read_torch_file(tmp_path / "none.pth")


def test_other_types_of_numbers_are_named(save):
    octets = Storage("0", np.zeros(12, np.uint8))
    contents = {
        "float8": LaterTensor(octets, (12,), (1,), sys.modules["torch"].float8_e4m3fn),
        "complex": Tensor(Storage("1", np.zeros(2, np.complex64)), 0, (2,), (1,)),
        "parameter": Parameter(Tensor(Storage("2", np.ones(3, np.float32)), 0, (3,), (1,))),
    }
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
    assert read["args"].lr == 1.0 and read["optimizer"]["param_groups"][0]["lr"] == 0.1
