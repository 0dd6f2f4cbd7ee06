"""From the bytes of an image file to an array of any number of channels, of 8 bits, 16 bits or floating point."""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Real, UInt8

from croc_jax.data.decoding import decode, decode_errors, naming, open_image
from croc_jax.data.orientation import turn
from croc_jax.data.pixel_modes import DecodeError
from croc_jax.data.stored_arrays import as_image, channel_axis, is_npy, read_npy
from croc_jax.data.tiff import import_readers, is_tiff, read_tiff
from croc_jax.pixel_format import PixelFormat

if TYPE_CHECKING:
    from croc_jax.data.sources.base import ImageSource

_PNG = b"\x89PNG\r\n\x1a\n"
# Where a PNG states bits and kind of its values, and the channels of the kinds that Pillow reads by halves.
_PNG_BITS, _PNG_KIND = 24, 25
_DEEP_CHANNELS = {2: 3, 4: 2, 6: 4}
# What Pillow reads without a change of values.
_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "BMP")
# Channels and type by its modes.
_MODES = {"L": (1, "uint8"), "LA": (2, "uint8"), "RGB": (3, "uint8"), "RGBA": (4, "uint8"), "I;16": (1, "uint16")}


def decode_pixels(encoded: bytes, pixels: PixelFormat) -> Real[np.ndarray, "H W c"]:
    """Returns an image as its values are stored, channels last, upright by its orientation.

    Args:
        encoded: the contents of a TIFF, PNG, JPEG, WebP, BMP or NumPy .npy file.
        pixels: the channels and the type that it must have. 8-bit RGB is read from any format, see `decode`; floating
            point takes every type whose values it holds.

    Raises:
        DecodeError: for anything that cannot be decoded as a whole, or of another format, which the message names.
        ValueError: if the libraries that read TIFF are not installed.
    """
    if pixels.is_rgb8:
        return decode(encoded)
    check_readers(encoded)
    with decode_errors(encoded):
        if is_npy(encoded):
            return read_npy(encoded, pixels)
        if is_tiff(encoded):
            return read_tiff(encoded, pixels)
        return _read_common(encoded, pixels)


def check_readers(encoded: bytes) -> None:
    """Raises ValueError if an image of another format than 8-bit RGB needs libraries that are not installed."""
    if is_tiff(encoded) or _is_deep_color(encoded):
        import_readers()


def load_pixels(source: "ImageSource", index: int, pixels: PixelFormat) -> Real[np.ndarray, "H W c"]:
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


def _read_common(encoded: bytes, pixels: PixelFormat) -> Real[np.ndarray, "H W c"]:
    """Returns the image in a file of a format that Pillow reads."""
    image, _, header = open_image(encoded)
    if image.format not in _FORMATS:
        raise DecodeError(f"{image.format} files are read as 8-bit RGB only: save TIFF, PNG or .npy")
    # Bits become black and white, and a palette the colors that it stands for.
    colors = "RGBA" if "transparency" in image.info else "RGB"
    mode = {"1": "L", "P": colors}.get(image.mode, image.mode)
    if mode not in _MODES:
        raise DecodeError(f"an image of mode {mode}, whose values are no channels: save gray, RGB or RGBA")
    deep = _is_deep_color(encoded)
    count, dtype = (_DEEP_CHANNELS[encoded[_PNG_KIND]], "uint16") if deep else _MODES[mode]
    axis = channel_axis((*header.stored, count), np.dtype(dtype), pixels, axes=(-1,))
    if deep:
        # Pillow would keep the upper halves of the values.
        _, imagecodecs = import_readers()
        stored = imagecodecs.png_decode(encoded)
    else:
        stored = np.asarray(image if image.mode == mode else image.convert(mode))
    return turn(as_image(stored.reshape(*header.stored, count), axis, pixels), header.orientation)


def _is_deep_color(encoded: bytes) -> bool:
    """Returns whether this is a PNG of 16-bit values of several channels."""
    is_png = encoded.startswith(_PNG) and len(encoded) > _PNG_KIND
    return is_png and encoded[_PNG_BITS] == 16 and encoded[_PNG_KIND] in _DEEP_CHANNELS
