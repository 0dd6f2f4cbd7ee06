"""Reads the arrays of PyTorch's .pth files without PyTorch, and without running anything that a file contains."""

import argparse
import collections
import functools
import io
import pickle
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

_STORAGES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


class TorchFileError(ValueError):
    """A file cannot be read as PyTorch's; the message says why and what to do."""


class Opaque:
    """Stands for an object of a class that is of no interest; nothing of it is kept."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "Opaque":
        """Ignores what the object is made of."""
        del args, kwargs
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Ignores it again."""
        del args, kwargs

    def __setstate__(self, state: Any) -> None:
        """Ignores the state."""


class _StorageType(NamedTuple):
    dtype: Any


def read_torch_file(file: Path) -> Any:
    """Returns what torch.save wrote, arrays in place of tensors.

    Dictionaries, lists, numbers, texts and argparse's namespaces come as they are, all else as
    `Opaque`.

    Args:
        file: in the zip format that torch.save writes since PyTorch 1.6.

    Raises:
        FileNotFoundError: if there is no such file.
        TorchFileError: for any other format, or a damaged file.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            if len(names) != 1:
                raise TorchFileError(f"{file} is a zip file, but none of PyTorch's: it holds no data.pkl")
            folder = names[0].removesuffix("data.pkl")
            return _Unpickler(io.BytesIO(archive.read(names[0])), archive, folder).load()
    except zipfile.BadZipFile as error:
        raise TorchFileError(
            f"{file} is no zip file ({error}): it is damaged, or older than PyTorch 1.6; "
            "load it there and save it again, as .pth or .safetensors"
        ) from error
    except (pickle.UnpicklingError, EOFError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise TorchFileError(f"{file} is damaged ({type(error).__name__}: {error}): get it again") from error


class _Unpickler(pickle.Unpickler):
    """Knows tensors and plain containers; calls nothing else."""

    def __init__(self, data: io.BytesIO, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(data, encoding="latin1")
        self._archive, self._folder = archive, folder
        # Tensors that share memory there share it here.
        self._read = functools.cache(archive.read)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda tensor, *rest: tensor
        if module == "torch" and name in _STORAGES:
            return _StorageType(_STORAGES[name])
        if (module, name) == ("torch", "Size"):
            return tuple
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("argparse", "Namespace"):
            return argparse.Namespace
        return Opaque

    def persistent_load(self, pid: Any) -> np.ndarray:
        kind, storage, key, _, count = pid
        if kind != "storage" or not isinstance(storage, _StorageType):
            raise pickle.UnpicklingError(f"unknown storage {pid}")
        values = np.frombuffer(self._read(f"{self._folder}data/{key}"), storage.dtype)
        if len(values) != count:
            raise pickle.UnpicklingError(f"storage {key} has {len(values)} values, not {count}")
        return values


def _rebuild_tensor(storage: np.ndarray, offset: int, size: Sequence[int], stride: Sequence[int], *_: Any) -> Any:
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if offset < 0 or min(size, default=1) < 0 or min(stride, default=0) < 0 or (0 not in size and last >= len(storage)):
        raise pickle.UnpicklingError("a tensor reaches beyond its storage")
    strides = [step * storage.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], size, strides).copy()
