"""From the bytes of an image file to an array of any number of channels, of 8 bits, 16 bits or floating point."""

import io

import numpy as np
from jaxtyping import Real, UInt8
from PIL import Image

from croc_jax.data.decoding import MAX_PIXELS, decode, naming
from croc_jax.data.pixel_modes import DecodeError
from croc_jax.data.sources.base import ImageSource
from croc_jax.pixel_format import PixelFormat

NPY = b"\x93NUMPY"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def decode_pixels(encoded: bytes, pixels: PixelFormat) -> Real[np.ndarray, "H W c"]:
    """Returns an image as its values are stored, channels last.

    Args:
        encoded: the contents of a TIFF, PNG, NumPy .npy or other image file.
        pixels: the channels and the type that it must have; 8-bit RGB is read from any format, see `decode`.

    Raises:
        DecodeError: for anything that cannot be decoded as a whole, or of another format.
    """
    if pixels.is_rgb8:
        return decode(encoded)
    image = _load(encoded)
    image = image[..., None] if image.ndim == 2 else image
    if image.ndim != 3 or image.shape[-1] != pixels.channels or image.dtype != np.dtype(pixels.dtype):
        raise DecodeError(f"it holds {image.shape} {image.dtype}, and the run takes {pixels.describe()}")
    if image.shape[0] * image.shape[1] > MAX_PIXELS:
        raise DecodeError("too many pixels")
    return image


def load_pixels(source: ImageSource, index: int, pixels: PixelFormat) -> Real[np.ndarray, "H W c"]:
    """Returns an image of a source, as `decode_pixels` does.

    Args:
        source: the images.
        index: index of the image.
        pixels: the format that it must have.

    Raises:
        DecodeError: naming the image, if it cannot be read.
        OSError: for a fault of the machine.
    """
    with naming(source.name(index)):
        return decode_pixels(source[index], pixels)


def show_pixels(images: Real[np.ndarray, "*batch H W c"], pixels: PixelFormat) -> UInt8[np.ndarray, "*batch H W 3"]:
    """Returns images as 8-bit RGB for pictures: their `shown_channels`, from low to high of their range."""
    if pixels.is_rgb8:
        return np.asarray(images)
    chosen = list(pixels.rgb_channels)
    low, high = (np.array(values, np.float32)[chosen] for values in pixels.limits)
    values = (np.asarray(images)[..., chosen].astype(np.float32) - low) / (high - low)
    return np.round(255 * np.clip(values, 0, 1)).astype(np.uint8)


def _load(encoded: bytes) -> np.ndarray:
    if encoded.startswith(NPY):
        return np.load(io.BytesIO(encoded), allow_pickle=False)
    if encoded.startswith(_TIFF):
        import tifffile

        return tifffile.imread(io.BytesIO(encoded))
    return np.asarray(Image.open(io.BytesIO(encoded)))
