"""Reads TIFF files of any channels: which pages are the image, and in which ways its values are stored."""

import io
import logging
import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Real

from croc_jax.data.orientation import checked_orientation, turn
from croc_jax.data.pixel_modes import REDUCED_OR_MASK, WHITE_IS_ZERO, DecodeError
from croc_jax.data.stored_arrays import as_image, channel_axis
from croc_jax.pixel_format import PixelFormat

_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Rows that tifffile has written as pages, see `read_tiff`, and more than any image has.
_MAX_PAGES = 20_000
# A tile may be larger than a small image, but not much, or a small file takes all memory.
_MAX_TILE = 2**22
_MEANING, _ORIENTATION = 262, 274
# Whose decoders know the size of the values: none, LZW, JPEG, deflate, PackBits, LERC, LZMA, Zstandard, WebP.
_COMPRESSIONS = (1, 5, 7, 8, 32946, 32773, 34887, 34925, 50000, 50001)
_BLACK_IS_ZERO, _RGB, _YCBCR, _JPEG = 1, 2, 6, 7


class _Layout(NamedTuple):
    """What all pages of an image have in common."""

    shape: tuple[int, ...]
    dtype: np.dtype | None
    bits: int
    meaning: int
    orientation: int
    is_planar: bool


def is_tiff(encoded: bytes) -> bool:
    """Returns whether the bytes begin as a TIFF or a BigTIFF does."""
    return encoded.startswith(_MAGIC)


def import_readers() -> tuple[Any, Any]:
    """Returns the modules tifffile and imagecodecs; raises ValueError if they are not installed."""
    try:
        import imagecodecs  # pyright: ignore[reportMissingImports]
        import tifffile  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError(
            f"TIFF files and 16-bit colors need tifffile and imagecodecs ({error}): pip install 'croc_jax[tiff]'"
        ) from error
    # It names no file, and what matters becomes a DecodeError.
    logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)
    return tifffile, imagecodecs


def read_tiff(encoded: bytes, pixels: PixelFormat) -> Real[np.ndarray, "H W c"]:
    """Returns the image in a TIFF as its values are stored, upright.

    Its channels are the samples of its page, contiguous or planar, or else its pages of one sample each. Reduced
    images, masks and SubIFDs, such as previews and levels of a pyramid, are left out. Pages as wide as there are
    channels are rows: tifffile writes an array [H W c] so unless it is told of channels. Where white is zero, values
    are inverted.

    Args:
        encoded: the contents of the file.
        pixels: the channels and the type that it must have.

    Raises:
        DecodeError: for an image of another format, and for pages or values that would need a guess.
        Exception: of many types, from the libraries, for a damaged file.
        ValueError: if the libraries are not installed.
    """
    tifffile, imagecodecs = import_readers()
    with tifffile.TiffFile(io.BytesIO(encoded)) as file:
        first = file.pages.first
        stack = _stack_in_a_row(file)
        kept = {0: first} if stack else _image_pages(file)
        layouts = {_layout(page) for page in kept.values()}
        count = stack[0] if stack else len(kept)
        if len(layouts) > 1:
            sizes = " and ".join(sorted({" x ".join(map(str, layout.shape)) for layout in layouts}))
            raise DecodeError(f"a TIFF of {count} pages of several kinds ({sizes}): save the one that counts")
        layout = layouts.pop()
        axes = (0,) if layout.is_planar else (-1,)
        if count > 1 and len(layout.shape) > 2:
            raise DecodeError(f"a TIFF of {count} pages of {layout.shape[axes[0]]} samples: save each as a file")
        shape = (count, *layout.shape) if count > 1 else layout.shape
        axis = channel_axis(shape, layout.dtype, pixels, axes=(0, -1) if count > 1 else axes)
        for page in kept.values():
            _check_tiles(page)
    if stack:
        dtype = first.dtype.newbyteorder(file.byteorder)
        stored = np.frombuffer(encoded, dtype, math.prod(shape), stack[1])
    else:
        stored = imagecodecs.tiff_decode(encoded, index=list(kept))
    if layout.meaning == WHITE_IS_ZERO:
        stored = (2**layout.bits - 1 - stored).astype(stored.dtype)
    return turn(as_image(stored.reshape(shape), axis, pixels), layout.orientation)


def _stack_in_a_row(file: Any) -> tuple[int, int] | None:
    """Returns number and place of pages that tifffile or ImageJ wrote in a row, of which they may list but one."""
    first = file.pages.first
    is_stack = (first.is_shaped or first.is_imagej) and not first.is_ome and not first.subifds
    if not (is_stack and first.is_final and first.size) or _has_page(file, _MAX_PAGES):
        return None
    series = file.series
    count = series[0].size // first.size if len(series) == 1 else 1
    if count == 1 or series[0].dataoffset is None:
        return None
    return count, series[0].dataoffset


def _has_page(file: Any, number: int) -> bool:
    try:
        file.pages.get(number)
    except IndexError:
        return False
    return True


def _image_pages(file: Any) -> dict[int, Any]:
    """Returns the pages that are no reduced images or masks, by number."""
    # Their number alone would take forever where they are linked in a circle.
    if _has_page(file, _MAX_PAGES):
        raise DecodeError(f"a TIFF of more than {_MAX_PAGES} pages")
    kept = {number: page for number, page in enumerate(file.pages) if not page.subfiletype & REDUCED_OR_MASK}
    if not kept:
        raise DecodeError("a TIFF without an image: its pages are previews or masks")
    return kept


def _layout(page: Any) -> _Layout:
    """Returns how a page is stored; raises DecodeError for what is no plain value a channel."""
    bits, meaning = page.bitspersample, page.photometric
    if not isinstance(bits, int) or bits < 8:
        raise DecodeError(f"a TIFF of {bits} bits a value: save 8, 16 or 32")
    if page.compression not in _COMPRESSIONS:
        name = getattr(page.compression, "name", page.compression)
        raise DecodeError(f"a TIFF compressed by {name}: save it with deflate, LZW or Zstandard")
    if page.imagedepth != 1:
        raise DecodeError(f"a TIFF of a volume, {page.imagedepth} images deep: save each as a file")
    if _MEANING not in page.tags:
        raise DecodeError("a TIFF that does not state whether zero is black (tag 262): save it again")
    is_color = meaning == _RGB or (meaning == _YCBCR and page.compression == _JPEG)
    if not is_color and meaning not in (WHITE_IS_ZERO, _BLACK_IS_ZERO):
        name = getattr(meaning, "name", meaning)
        raise DecodeError(f"a TIFF whose values are of the kind {name}: save gray, RGB, or bands where black is zero")
    if meaning == WHITE_IS_ZERO and (page.dtype is None or page.dtype.kind != "u"):
        raise DecodeError(f"a TIFF of {page.dtype} whose white is zero: save it with black as zero")
    orientation = checked_orientation(page.tags.valueof(_ORIENTATION))
    is_planar = page.planarconfig == 2 and page.samplesperpixel > 1
    return _Layout(tuple(page.shape), page.dtype, bits, int(meaning), orientation, is_planar)


def _check_tiles(page: Any) -> None:
    """Raises DecodeError for tiles that are much larger than the image."""
    tile = page.tilewidth * page.tilelength if page.is_tiled else 0
    if tile > max(4 * page.imagewidth * page.imagelength, _MAX_TILE):
        raise DecodeError(f"a TIFF with tiles of {page.tilewidth} x {page.tilelength}, larger than the image")
