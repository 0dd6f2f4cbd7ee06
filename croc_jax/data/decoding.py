"""From the bytes of an image file to pixels, in full or only as fine as needed."""

import io
import math
from typing import NamedTuple

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image

import croc_jax.data.formats  # noqa: F401, registers HEIF where its plugin is installed

# More than any camera's; a small file can claim far more and take all memory.
MAX_PIXELS = 100_000_000

_MAX_HALVINGS = 3

Pixels = UInt8[np.ndarray, "H W 3"]


class DecodeError(ValueError):
    """The bytes are no readable image; the message says why."""


class Size(NamedTuple):
    """The size of an image in pixels."""

    height: int
    width: int


def decode(encoded: bytes) -> Pixels:
    """Returns an image as RGB bytes.

    Gray images repeat their value, transparency is dropped, and 16-bit values lose their lower
    half. EXIF rotation is ignored, as by torchvision.

    Args:
        encoded: the contents of a JPEG, PNG, WebP or other image file.

    Raises:
        DecodeError: for anything that cannot be decoded as a whole, or of more than `MAX_PIXELS`.
    """
    read_size(encoded)
    if simplejpeg.is_jpeg(encoded):
        try:
            return simplejpeg.decode_jpeg(encoded, colorspace="RGB")
        except ValueError:
            # Rare color spaces and harmless defects: Pillow may read them.
            pass
    try:
        return _decode_with_pillow(encoded)
    except Exception as error:  # Pillow's parsers raise exceptions of many types.
        raise _failure(error) from error


def decode_at_least(encoded: bytes, full: Size, *, share: float) -> Pixels:
    """Returns an image; a JPEG is decoded approximately, and halved as often as `share` of its sides remains.

    Args:
        encoded: as for `decode`.
        full: the size that `read_size` returns.
        share: fraction of width and height that suffices; 1 or more for full size.

    Raises:
        DecodeError: as `decode` does.
    """
    # libjpeg decodes at 1/2, 1/4 and 1/8 faster than in full.
    halvings = max((n for n in range(_MAX_HALVINGS + 1) if 0.5**n >= share), default=0)
    if simplejpeg.is_jpeg(encoded):
        try:
            return simplejpeg.decode_jpeg(
                encoded,
                colorspace="RGB",
                fastdct=True,
                fastupsample=True,
                min_height=math.ceil(full.height / 2**halvings),
                min_width=math.ceil(full.width / 2**halvings),
            )
        except ValueError:
            pass
    return decode(encoded)


def read_size(encoded: bytes) -> Size:
    """Returns the size that the header of an image states, without decoding it.

    Args:
        encoded: as for `decode`.

    Raises:
        DecodeError: for what is no image, or one of more than `MAX_PIXELS`.
    """
    try:
        size = _read_size(encoded)
    except Image.DecompressionBombError:
        raise DecodeError(f"it has more than {MAX_PIXELS // 10**6} million pixels") from None
    except Exception as error:
        raise _failure(error) from error
    if size.height * size.width > MAX_PIXELS:
        raise DecodeError(f"it has more than {MAX_PIXELS // 10**6} million pixels: {size.width} x {size.height}")
    return size


def _read_size(encoded: bytes) -> Size:
    if simplejpeg.is_jpeg(encoded):
        try:
            height, width, *_ = simplejpeg.decode_jpeg_header(encoded)
            return Size(int(height), int(width))
        except ValueError:
            pass
    with Image.open(io.BytesIO(encoded)) as image:
        return Size(image.height, image.width)


def _decode_with_pillow(encoded: bytes) -> Pixels:
    with Image.open(io.BytesIO(encoded)) as image:
        image.load()
        if image.mode == "F" or (image.mode == "I" and image.format != "PNG"):
            raise ValueError(
                f"{image.format} pixels of mode {image.mode} have no known range: save 8 or 16 bits a channel"
            )
        if image.mode.startswith("I"):
            gray = (np.asarray(image) >> 8).astype(np.uint8)
            return np.repeat(gray[..., None], 3, axis=-1)
        if "transparency" in image.info:
            image = image.convert("RGBA")
        return np.asarray(image.convert("RGB"))


def _failure(error: Exception) -> DecodeError:
    return DecodeError(f"{type(error).__name__}: {error}")
