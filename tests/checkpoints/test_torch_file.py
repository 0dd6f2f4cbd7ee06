"""Files in PyTorch's format, made here without it, and by it where it is installed."""

import argparse
import pickle
import sys
import types
import zipfile
from collections import OrderedDict

import numpy as np
import pytest

from croc_jax.checkpoints.torch_file import Opaque, TorchFileError, read_torch_file


class Tensor:
    """Pickles as PyTorch's does: a call with a reference to its storage."""

    def __init__(self, storage, offset, size, stride):
        self.parts = (storage, offset, size, stride, False, OrderedDict())

    def __reduce__(self):
        return sys.modules["torch._utils"]._rebuild_tensor_v2, self.parts


class Storage:
    def __init__(self, key, values):
        self.key, self.values = key, values


class Stranger:
    def __reduce__(self):
        return print, ("this must not be called",)


@pytest.fixture
def save(monkeypatch, tmp_path):
    """Writes a file as torch.save does."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for module, name in ((torch, "FloatStorage"), (torch, "LongStorage"), (utils, "_rebuild_tensor_v2")):
        kind = type(name, (), {"__module__": module.__name__, "__qualname__": name})
        setattr(module, name, kind)
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)

    def write(contents, name="weights.pth", drop=()):
        file, storages = tmp_path / name, {}

        class Pickler(pickle.Pickler):
            def persistent_id(self, obj):
                if isinstance(obj, Storage):
                    storages[obj.key] = obj.values
                    kind = torch.FloatStorage if obj.values.dtype == np.float32 else torch.LongStorage
                    return ("storage", kind, obj.key, "cpu", len(obj.values))
                return None

        with zipfile.ZipFile(file, "w") as archive:
            with archive.open("weights/data.pkl", "w") as data:
                Pickler(data, 2).dump(contents)
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


@pytest.mark.parametrize("size, stride, offset", [((5, 6), (6, 1), 0), ((4, 6), (6, 1), 1), ((2, 2), (30, 1), 0)])
def test_a_tensor_beyond_its_storage_is_refused(save, size, stride, offset):
    file = save({"a": Tensor(Storage("0", np.zeros(24, np.float32)), offset, size, stride)})
    with pytest.raises(TorchFileError, match="beyond its storage.*get it again"):
        read_torch_file(file)


def test_damage_is_explained(save, tmp_path):
    with pytest.raises(TorchFileError, match="is damaged"):
        read_torch_file(save({"a": Tensor(Storage("0", np.zeros(2, np.float32)), 0, (2,), (1,))}, drop=("0",)))
    old = tmp_path / "old.pth"
    old.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(TorchFileError, match="no zip file.*older than PyTorch 1.6"):
        read_torch_file(old)
    with zipfile.ZipFile(tmp_path / "other.pth", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(TorchFileError, match="holds no data.pkl"):
        read_torch_file(tmp_path / "other.pth")
    with pytest.raises(FileNotFoundError):
        read_torch_file(tmp_path / "none.pth")


def test_files_of_pytorch_itself(tmp_path):
    torch = pytest.importorskip("torch")
    tensor = torch.arange(12.0).reshape(3, 4)
    contents = {
        "transposed": tensor.T,
        "parameter": torch.nn.Parameter(tensor[1:]),
        "bfloat16": tensor.to(torch.bfloat16),
        "half": tensor.half(),
        "long": torch.arange(3),
        "args": argparse.Namespace(lr=1.0),
        "optimizer": torch.optim.SGD([torch.nn.Parameter(tensor)], lr=0.1, momentum=0.9).state_dict(),
        "dtype": torch.float32,
    }
    torch.save(contents, tmp_path / "file.pth")
    read = read_torch_file(tmp_path / "file.pth")
    for name in ("transposed", "half", "long"):
        np.testing.assert_array_equal(read[name], contents[name].numpy())
    np.testing.assert_array_equal(read["parameter"], tensor[1:].numpy())
    np.testing.assert_array_equal(read["bfloat16"].astype(np.float32), tensor.numpy())
    assert read["args"].lr == 1.0 and read["optimizer"]["param_groups"][0]["lr"] == 0.1
