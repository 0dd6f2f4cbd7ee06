"""Writes files as torch.save does, without PyTorch."""

import io
import pickle
import struct
import sys
import types
import zipfile
from collections import OrderedDict
from unittest import mock

import numpy as np

STORAGES = {
    "float32": "FloatStorage", "float64": "DoubleStorage", "float16": "HalfStorage", "bfloat16": "BFloat16Storage",
    "int64": "LongStorage", "int8": "CharStorage", "uint8": "UntypedStorage", "complex64": "ComplexStorage",
}  # fmt: skip
GLOBALS = {
    "torch": (*STORAGES.values(), "float8_e4m3fn"),
    "torch._utils": ("_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_parameter_with_state"),
}


class Tensor:
    """Pickles as PyTorch's does: a call with a reference to its storage."""

    def __init__(self, storage, offset, size, stride):
        self.parts = (storage, offset, size, stride, False, OrderedDict())

    def __reduce__(self):
        return sys.modules["torch._utils"]._rebuild_tensor_v2, self.parts


class Storage:
    def __init__(self, key, values):
        self.key, self.values = key, values


class _Pickler(pickle.Pickler):
    def __init__(self, data):
        super().__init__(data, 2)
        self.storages = {}

    def persistent_id(self, obj):
        if not isinstance(obj, Storage):
            return None
        self.storages[obj.key] = obj.values
        kind = getattr(sys.modules["torch"], STORAGES[obj.values.dtype.name])
        return ("storage", kind, obj.key, "cpu", len(obj.values))


def fake_modules():
    """Returns modules with the classes of PyTorch that files name."""
    found = {}
    for module, names in GLOBALS.items():
        found[module] = types.ModuleType(module)
        for name in names:
            setattr(found[module], name, type(name, (), {"__module__": module, "__qualname__": name}))
    found["torch"].__dict__["is_fake"] = True
    return found


def write_legacy(file, data, storages):
    """Writes a file as PyTorch before 1.6 did."""
    head = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    arrays = [struct.pack("<q", len(values)) + values.tobytes() for values in storages.values()]
    file.write_bytes(b"".join([*head, data, pickle.dumps(list(storages), 2), *arrays]))


def write_torch(file, contents, *, drop=(), compression=zipfile.ZIP_STORED, legacy=False):
    """Writes contents, with an array of NumPy wherever PyTorch has a tensor; storages in `drop` are left out."""
    data, count = io.BytesIO(), 0

    def to_tensors(value):
        nonlocal count
        if isinstance(value, dict):
            return type(value)((name, to_tensors(inner)) for name, inner in value.items())
        if not isinstance(value, np.ndarray):
            return value
        count += 1
        stride = np.array(np.ascontiguousarray(value).strides) // value.itemsize
        return Tensor(Storage(f"array{count}", value.ravel()), 0, value.shape, tuple(stride.tolist()[: value.ndim]))

    with mock.patch.dict(sys.modules, {} if hasattr(sys.modules.get("torch"), "is_fake") else fake_modules()):
        pickler = _Pickler(data)
        pickler.dump(to_tensors(contents))
        if legacy:
            write_legacy(file, data.getvalue(), pickler.storages)
            return file
    kept = {f"data/{key}": values.tobytes() for key, values in pickler.storages.items() if key not in drop}
    with zipfile.ZipFile(file, "w") as archive:
        for name, octets in ({"data.pkl": data.getvalue()} | kept).items():
            # With the same date in every file.
            archive.writestr(zipfile.ZipInfo(f"weights/{name}"), octets, compression)
    return file
