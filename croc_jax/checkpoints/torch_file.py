"""Reads the arrays of PyTorch's .pth files without PyTorch, and without running anything that a file contains."""

import argparse
import collections
import functools
import io
import pickle
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

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
    "UntypedStorage": np.uint8,
}
# Types that have no storages of their own.
_LATER_TYPES = {"uint16": np.uint16, "uint32": np.uint32, "uint64": np.uint64}
# What a file before PyTorch 1.6 starts with.
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


class TorchFileError(ValueError):
    """A file cannot be read as PyTorch's; the message says why and what to do."""


class Opaque:
    """Stands for an object of which nothing is kept; the name of its type tells what it was."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "Opaque":
        """Ignores what the object is made of."""
        del args, kwargs
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Ignores it again."""
        del args, kwargs

    def __setstate__(self, state: Any) -> None:
        """Ignores the state."""

    def __setitem__(self, key: Any, value: Any) -> None:
        """Ignores what a dictionary of another class holds."""

    def append(self, value: Any) -> None:
        """Ignores what a list of another class holds."""

    def extend(self, values: Any) -> None:
        """Ignores that, too."""


def unread(kind: str) -> Opaque:
    """Returns what stands for a thing of a kind that is not read, such as a type of numbers."""
    return _opaque_type(kind)()


def _opaque_type(name: str) -> type[Opaque]:
    return type(name, (Opaque,), {})


class _StorageType(NamedTuple):
    dtype: Any


# From the key of a storage, its type of numbers and their count, to the numbers.
_ReadStorage = Callable[[str, Any, int], Any]


def read_torch_file(file: Path) -> Any:
    """Returns what torch.save wrote, arrays in place of tensors.

    Dictionaries, lists, numbers, texts and argparse's namespaces come as they are, all else, and
    tensors of 8-bit floats, complex numbers and other such types, as `Opaque`.

    Args:
        file: in the zip format of PyTorch 1.6 and later, or the one before.

    Raises:
        FileNotFoundError: if there is no such file.
        TorchFileError: for any other format, or a damaged file.
    """
    with file.open("rb") as stream:
        is_zip = stream.read(2) == b"PK"
        stream.seek(0)
        try:
            return _read_zip(file) if is_zip else _read_legacy(stream, file)
        except TorchFileError:
            raise
        except (
            zipfile.BadZipFile, zlib.error, pickle.UnpicklingError, EOFError, KeyError, IndexError, TypeError,
            AttributeError, ValueError, OverflowError, RuntimeError,
        ) as error:  # fmt: skip
            raise TorchFileError(f"{file} is damaged ({type(error).__name__}: {error}): get it again") from error


def _read_zip(file: Path) -> Any:
    with zipfile.ZipFile(file) as archive:
        names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(names) != 1:
            raise TorchFileError(f"{file} is a zip file, but none of PyTorch's: it holds no data.pkl")
        folder = names[0].removesuffix("data.pkl")
        # Tensors that share memory there share it here.
        read = functools.cache(archive.read)

        def read_storage(key: str, dtype: Any, count: int) -> np.ndarray:
            del count
            return np.frombuffer(read(f"{folder}data/{key}"), dtype)

        return _Unpickler(io.BytesIO(archive.read(names[0])), read_storage).load()


def _read_legacy(stream: IO[bytes], file: Path) -> Any:
    """Reads pickles in a row: three of no interest, the contents, keys of storages; then the storages."""
    storage_types: dict[str, Any] = {}

    def note(key: str, dtype: Any, count: int) -> Opaque:
        del count
        storage_types[key] = dtype
        return unread("tensor")

    try:
        magic = _Unpickler(stream, note).load()
    except Exception:
        magic = None
    if magic != _LEGACY_MAGIC:
        raise TorchFileError(f"{file} is no file that torch.save wrote: get it again, or save it as .safetensors")
    for _ in ("version of the format", "system"):
        _Unpickler(stream, note).load()
    start = stream.tell()
    # Storages come last: the first time through, only their types matter.
    _Unpickler(stream, note).load()
    keys = _Unpickler(stream, note).load()
    if any(key not in storage_types for key in keys):
        raise TorchFileError(
            f"{file} has tensors of types that are not read here, in the format before PyTorch 1.6: "
            "load it in PyTorch and save it again"
        )
    size = file.stat().st_size
    storages = {key: _next_storage(stream, storage_types[key], size=size) for key in keys}
    stream.seek(start)
    return _Unpickler(stream, lambda key, dtype, count: storages[key]).load()


def _next_storage(stream: IO[bytes], dtype: Any, *, size: int) -> np.ndarray:
    """Reads a count and as many numbers, from a file of `size` bytes."""
    count = int.from_bytes(stream.read(8), "little")
    if stream.tell() + count * np.dtype(dtype).itemsize > size:
        raise pickle.UnpicklingError(f"the file ends before the {count} values of a storage")
    return np.frombuffer(stream.read(count * np.dtype(dtype).itemsize), dtype)


class _Unpickler(pickle.Unpickler):
    """Knows tensors and plain containers; calls nothing else."""

    def __init__(self, data: IO[bytes], read_storage: _ReadStorage) -> None:
        super().__init__(data, encoding="latin1")
        self._read_storage = read_storage

    def find_class(self, module: str, name: str) -> Any:
        if module in ("torch._utils", "torch._tensor") and name in _REBUILD:
            return _REBUILD[name]
        if module in ("torch", "torch.storage") and name in _STORAGES:
            return _StorageType(_STORAGES[name])
        if (module, name) == ("torch", "Size"):
            return tuple
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("argparse", "Namespace"):
            return argparse.Namespace
        return _opaque_type(name)

    def persistent_load(self, pid: Any) -> Any:
        kind, storage, key, _, count, *view = pid
        if kind != "storage" or any(view):
            raise pickle.UnpicklingError(f"unknown storage {pid}")
        if not isinstance(storage, _StorageType):
            return unread(storage.__name__)
        values = self._read_storage(key, storage.dtype, count)
        if not isinstance(values, Opaque) and len(values) != count:
            raise pickle.UnpicklingError(f"storage {key} has {len(values)} values, not {count}")
        return values


def _rebuild_tensor(storage: Any, offset: int, size: Sequence[int], stride: Sequence[int], *_: Any) -> Any:
    if isinstance(storage, Opaque):
        return storage
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if offset < 0 or min(size, default=1) < 0 or min(stride, default=0) < 0 or (0 not in size and last >= len(storage)):
        raise pickle.UnpicklingError("a tensor reaches beyond its storage")
    strides = [step * storage.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], size, strides).copy()


def _rebuild_later_tensor(
    storage: Any, offset: int, size: Sequence[int], stride: Sequence[int], grad: bool, hooks: Any, dtype: Any, *_: Any
) -> Any:
    """Rebuilds a tensor whose storage is bytes."""
    del grad, hooks
    if dtype.__name__ not in _LATER_TYPES or isinstance(storage, Opaque):
        return unread(dtype.__name__)
    return _rebuild_tensor(storage.view(_LATER_TYPES[dtype.__name__]), offset, size, stride)


def _rebuild_parameter(tensor: Any, *_: Any) -> Any:
    return tensor


def _rebuild_with_attributes(rebuild: Callable[..., Any], kind: Any, parts: Sequence[Any], *_: Any) -> Any:
    """Rebuilds a tensor that has attributes, or a class of its own."""
    del kind
    return rebuild(*parts)


_REBUILD = {
    "_rebuild_tensor_v2": _rebuild_tensor,
    "_rebuild_tensor_v3": _rebuild_later_tensor,
    "_rebuild_parameter": _rebuild_parameter,
    "_rebuild_parameter_with_state": _rebuild_parameter,
    "_rebuild_from_type_v2": _rebuild_with_attributes,
}
