"""Arrays in files as images of the format of a run: the axis of their channels, their types, and NumPy's own files."""

import io
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Real

from croc_jax.data.pixel_modes import DecodeError
from croc_jax.pixel_format import PixelFormat

# More than any camera's; a small file can claim far more and take all memory.
MAX_PIXELS = 100_000_000
TOO_MANY = f"it has more than {MAX_PIXELS // 10**6} million pixels"
WINDOWS_HINT = " (data.window of a run, or --window of launch/prepare.py, divides it)"

_NPY = b"\x93NUMPY"
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
# Beyond it are only the numbers that mark missing pixels, such as -3.4e38, and infinity; no value to resize with.
_LARGEST = 1e30


class TooManyPixelsError(DecodeError):
    """An image is too large to be decoded whole."""


def is_npy(encoded: bytes) -> bool:
    """Returns whether the bytes are a NumPy .npy file."""
    return encoded.startswith(_NPY)


def write_npy(image: Real[np.ndarray, "..."]) -> bytes:
    """Returns an array as the contents of a .npy file."""
    stream = io.BytesIO()
    np.save(stream, image)
    return stream.getvalue()


def read_npy(encoded: bytes, pixels: PixelFormat) -> Real[np.ndarray, "H W c"]:
    """Returns the image in a .npy file: [H W c], or [c H W] if its last axis is of another length, or [H W] of one.

    Args:
        encoded: the contents of the file.
        pixels: the channels and the type that it must have.

    Raises:
        DecodeError: for an array of another format, or one that needs pickle.
        ValueError: for a damaged header.
    """
    stream = io.BytesIO(encoded)
    version = np.lib.format.read_magic(stream)
    if version not in _HEADERS:
        raise DecodeError(f"a .npy file of version {version[0]}.{version[1]}: save an array of numbers")
    shape, is_fortran, dtype = _HEADERS[version](stream)
    if dtype.hasobject:
        raise DecodeError("a .npy file of Python objects, which would run code: save an array of numbers")
    axis = channel_axis(shape, dtype, pixels)
    start, size = stream.tell(), math.prod(shape) * dtype.itemsize
    if len(encoded) - start < size:
        raise DecodeError(f"it is truncated: {len(encoded) - start} bytes of values where its header states {size}")
    stored = np.frombuffer(encoded, dtype, math.prod(shape), start).reshape(shape, order="F" if is_fortran else "C")
    return as_image(stored, axis, pixels)


def channel_axis(
    shape: Sequence[int],
    dtype: np.dtype | None,
    pixels: PixelFormat,
    *,
    axes: tuple[int, ...] = (-1, 0),
    max_pixels: float = MAX_PIXELS,
) -> int:
    """Returns the axis of the channels of an array, from what its header states.

    Args:
        shape: its shape; two axes are one channel.
        dtype: type of its values; None for one that NumPy does not have.
        pixels: the channels and the type that it must have.
        axes: the axes that may be that of the channels; of those as long as there are channels, the first.
        max_pixels: the largest image that is taken.

    Raises:
        DecodeError: for an array of another format, or of more pixels.
    """
    if len(shape) not in (2, 3) or min(shape) < 1:
        raise DecodeError(f"it holds an array {list(shape)}: save images as [height, width, channels]")
    shape, axes = (shape, axes) if len(shape) == 3 else ((*shape, 1), (-1,))
    fitting = [axis for axis in axes if shape[axis] == pixels.channels]
    if not fitting or dtype is None or not _is_taken(dtype, pixels):
        count = min(shape[axis] for axis in axes)
        raise DecodeError(
            f"it holds {count} channel{'s' if count > 1 else ''} of {dtype} instead of {pixels.describe()}, as set by "
            "the weights, by data.channels and data.dtype, or by --channels and --dtype"
        )
    if math.prod(shape) // pixels.channels > max_pixels:
        raise TooManyPixelsError(f"{TOO_MANY}: {' x '.join(map(str, shape))}{WINDOWS_HINT}")
    return fitting[0]


def _is_taken(dtype: np.dtype, pixels: PixelFormat) -> bool:
    """Returns whether values become those of a run without a change: of floating point, any real numbers do."""
    return dtype.kind in "iuf" if pixels.dtype == "float32" else dtype.newbyteorder("=") == np.dtype(pixels.dtype)


def as_image(stored: Real[np.ndarray, "..."], axis: int, pixels: PixelFormat) -> Real[np.ndarray, "H W c"]:
    """Returns an array with its channels last, in the type of a run.

    Args:
        stored: an array that `channel_axis` has accepted.
        axis: the axis of its channels.
        pixels: the channels and the type.

    Raises:
        DecodeError: for integers that float32 does not hold exactly, and for numbers that mark missing pixels: NaN,
            infinity, and any beyond 1e30.
    """
    image = np.moveaxis(stored if stored.ndim == 3 else stored[..., None], axis, -1)
    if pixels.dtype != "float32":
        return np.ascontiguousarray(image, pixels.dtype)
    with np.errstate(over="ignore"):
        values = np.ascontiguousarray(image, np.float32)
    if image.dtype.kind in "iu" and image.dtype.itemsize > 2 and (values.astype(np.float64) != image).any():
        raise DecodeError(f"it holds {image.dtype} values above {2**24}, which float32 does not hold exactly")
    # False for NaN.
    if not (np.abs(values) < _LARGEST).all():
        raise DecodeError(f"it holds NaN, infinity or numbers beyond {_LARGEST:g}: replace what marks missing pixels")
    return values
