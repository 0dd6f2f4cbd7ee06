"""Reads the arrays of PyTorch's .pth files without PyTorch, and without running anything that a file contains."""

import collections
import errno
import functools
import io
import math
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from croc_jax.checkpoints.file_kinds import LEGACY, shorten

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


_PLAIN: dict[tuple[str, str], type] = {
    ("torch", "Size"): tuple,
    ("collections", "OrderedDict"): collections.OrderedDict,
}
# What broken files raise, here and in zipfile and pickle.
_BROKEN = (
    zipfile.BadZipFile, zlib.error, pickle.UnpicklingError, struct.error, EOFError, LookupError, TypeError,
    AttributeError, ValueError, OverflowError, RuntimeError, AssertionError, MemoryError,
)  # fmt: skip


class Opaque:
    """Stands for an object that is not read; the name of its type is that of the object's."""

    def __new__(cls, *args: object, **kwargs: object) -> "Opaque":
        """Ignores all arguments."""
        return super().__new__(cls)

    def _ignore(self, *args: object, **kwargs: object) -> None:
        """Ignores what pickle would restore."""

    __init__ = __setstate__ = __setitem__ = append = extend = add = update = _ignore


def opaque(kind: str) -> Opaque:
    """Returns a stand-in for an object that is not read, such as a tensor of a type that NumPy lacks."""
    return _opaque_type(kind)()


def _opaque_type(name: str) -> type[Opaque]:
    return type(name, (Opaque,), {})


def read_torch_file(file: Path) -> Any:
    """Returns what torch.save wrote, with arrays in place of tensors.

    Dictionaries, lists, numbers and strings come as they are; all else, such as tensors of 8-bit floats and complex
    numbers, and objects of any class, comes as `Opaque`.

    Args:
        file: a file in the zip format of PyTorch 1.6 and later, or in that before it.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for another kind of zip file, or a corrupt one.
    """
    try:
        with file.open("rb") as stream:
            if stream.read(len(LEGACY)) == LEGACY:
                return _read_legacy(stream)
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            pickled = [name for name in names if name.endswith("/data.pkl")]
            if len(pickled) == 1:
                return _read_zip(archive, pickled[0])
    except (*_BROKEN, OSError) as error:
        # A place before the start of the file; all else are faults of the machine.
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        reason = shorten(f"{type(error).__name__}: {error}", 200)
        raise ValueError(f"{file} is corrupt ({reason}): get it again") from error
    if names and all(name.endswith(".npy") for name in names):
        raise ValueError(f"{file} holds arrays of NumPy (.npz): load them in PyTorch's model, and save that")
    raise ValueError(f"{file} is a zip file, but none of PyTorch's: it holds no data.pkl")


def _read_zip(archive: zipfile.ZipFile, pickled: str) -> Any:
    folder = pickled.removesuffix("data.pkl")

    # Tensors that share memory there share it here.
    @functools.cache
    def read(name: str) -> bytes:
        # A few compressed bytes could stand for more than the memory.
        if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
            raise zipfile.BadZipFile(f"{name} is compressed, which torch.save does not do")
        return archive.read(name)

    load = lambda key, dtype: np.frombuffer(read(f"{folder}data/{key}"), dtype)  # noqa: E731
    return _Unpickler(io.BytesIO(read(pickled)), load).load()


def _read_legacy(stream: BinaryIO) -> Any:
    """Reads a version, sizes of types, the contents, keys of the storages, and the storages, one after another."""
    size = stream.seek(0, io.SEEK_END)
    stream.seek(len(LEGACY))
    for _ in range(2):
        _Unpickler(stream, _no_storage).load()
    start, kinds = stream.tell(), {}

    def note_kind(key: str, dtype: np.dtype) -> Opaque:
        kinds[key] = dtype
        return opaque("storage")

    _Unpickler(stream, note_kind).load()
    storages = {}
    for key in _Unpickler(stream, _no_storage).load():
        (count,) = struct.unpack("<q", stream.read(8))
        if not 0 <= count * kinds[key].itemsize <= size:
            raise pickle.UnpicklingError(f"storage {key} has {count} values")
        storages[key] = np.frombuffer(stream.read(count * kinds[key].itemsize), kinds[key])
    stream.seek(start)
    return _Unpickler(stream, lambda key, dtype: storages[key]).load()


def _no_storage(key: str, dtype: np.dtype) -> Any:
    raise pickle.UnpicklingError(f"storage {key} is out of place")


# That of the C library allocates what a corrupt number asks for.
class _Unpickler(pickle._Unpickler):  # pyright: ignore[reportAttributeAccessIssue]
    """Knows tensors and plain containers; calls nothing else."""

    def __init__(self, data: BinaryIO, read_storage: Callable[[str, np.dtype], Any]) -> None:
        super().__init__(data, encoding="latin1")
        self._read_storage = read_storage

    def find_class(self, module: str, name: str) -> Any:
        if module in ("torch._utils", "torch._tensor") and name in _REBUILD:
            # A function of its own, as a file can set attributes of what it names.
            return lambda *parts: _REBUILD[name](*parts)
        if module in ("torch", "torch.storage") and name in _STORAGES:
            return np.dtype(_STORAGES[name])
        return _PLAIN.get((module, name)) or _opaque_type(name)

    def persistent_load(self, pid: Any) -> Any:
        kind, storage, key, _, count, *view = pid
        if kind != "storage" or any(view):
            # What it holds instead may be anything, and is not shown.
            raise pickle.UnpicklingError("a storage of an unknown kind, or a part of one")
        if not isinstance(storage, np.dtype):
            return opaque(storage.__name__)
        values = self._read_storage(key, storage)
        if isinstance(values, np.ndarray) and len(values) != count:
            raise pickle.UnpicklingError(f"storage {key} has {len(values)} values, not {count}")
        return values


def _rebuild_tensor(storage: Any, offset: int, size: Sequence[int], stride: Sequence[int], *_: Any) -> Any:
    if isinstance(storage, Opaque):
        return storage
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if offset < 0 or min(size, default=1) < 0 or min(stride, default=0) < 0 or (0 not in size and last >= len(storage)):
        raise pickle.UnpicklingError("a tensor reaches beyond its storage")
    if math.prod(size) > len(storage):
        return opaque("expanded tensor")
    strides = [step * storage.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], size, strides).copy()


def _rebuild_later_tensor(*parts: Any) -> Opaque:
    """Stands for a tensor of 8-bit floats or unsigned integers, which are no types of weights."""
    return opaque(parts[6].__name__)


def _rebuild_parameter(tensor: Any, *_: Any) -> Any:
    return tensor


def _rebuild_with_attributes(rebuild: Callable[..., Any], kind: Any, parts: Sequence[Any], *_: Any) -> Any:
    """Rebuilds a tensor that has attributes, or a class of its own."""
    return rebuild(*parts)


_REBUILD = {
    "_rebuild_tensor": _rebuild_tensor,
    "_rebuild_tensor_v2": _rebuild_tensor,
    "_rebuild_tensor_v3": _rebuild_later_tensor,
    "_rebuild_parameter": _rebuild_parameter,
    "_rebuild_parameter_with_state": _rebuild_parameter,
    "_rebuild_from_type_v2": _rebuild_with_attributes,
}
