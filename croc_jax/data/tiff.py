"""Reads TIFF files of any channels: which pages are the image, and in which ways its values are stored."""

import io
import logging
import math
import operator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Real

from croc_jax.data.orientation import checked_orientation, turn
from croc_jax.data.pixel_modes import REDUCED_OR_MASK, WHITE_IS_ZERO, DecodeError
from croc_jax.data.stored_arrays import MAX_PIXELS, as_image, channel_axis
from croc_jax.pixel_format import PixelFormat

_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Rows that tifffile has written as pages, see `read_tiff`, and more than any image has.
_MAX_PAGES = 10_000
# A tile may be larger than a small image, but not much, or a small file takes all memory.
_MAX_TILE = 2**22
_MEANING, ORIENTATION = 262, 274
# Whose decoders know the size of the values: none, LZW, JPEG, deflate, PackBits, LERC, LZMA, Zstandard, WebP.
_COMPRESSIONS = (1, 5, 7, 8, 32946, 32773, 34887, 34925, 50000, 50001)
BLACK_IS_ZERO, _RGB, _YCBCR, JPEG = 1, 2, 6, 7
_TRUNCATED = "a truncated TIFF, whose values would lie beyond its end"


class Layout(NamedTuple):
    """What all pages of an image have in common."""

    shape: tuple[int, ...]
    dtype: np.dtype | None
    bits: int
    meaning: int
    orientation: int
    is_planar: bool


class FoundImage(NamedTuple):
    """The pages of a TIFF that are its image.

    Attributes:
        pages: these, by number; of pages that are stored in a row, the first alone.
        layout: what they have in common.
        shape: shape of the array that they form.
        axis: the axis of its channels, which is the last one if there is but one channel.
        place: where the values of pages in a row begin in the file; None for others.
    """

    pages: dict[int, Any]
    layout: Layout
    shape: tuple[int, ...]
    axis: int
    place: int | None


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
        found = find_image(file, pixels)
        byteorder = file.byteorder
    layout = found.layout
    if found.place is not None:
        assert layout.dtype is not None
        stored = np.frombuffer(encoded, layout.dtype.newbyteorder(byteorder), math.prod(found.shape), found.place)
    else:
        stored = imagecodecs.tiff_decode(encoded, index=list(found.pages))
    if layout.meaning == WHITE_IS_ZERO:
        stored = (2**layout.bits - 1 - stored).astype(stored.dtype)
    return turn(as_image(stored.reshape(found.shape), found.axis, pixels), layout.orientation)


def find_image(file: Any, pixels: PixelFormat, *, max_pixels: float = MAX_PIXELS) -> FoundImage:
    """Returns which pages of a TIFF are its image, see `read_tiff`.

    Args:
        file: an open tifffile.TiffFile.
        pixels: the channels and the type that it must have.
        max_pixels: the largest image that is taken.

    Raises:
        DecodeError: as `read_tiff`.
        Exception: of many types, from the libraries, for a damaged file.
    """
    stack = _stack_in_a_row(file)
    kept = {0: file.pages.first} if stack else _image_pages(file)
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
    axis = channel_axis(shape, layout.dtype, pixels, axes=(0, -1) if count > 1 else axes, max_pixels=max_pixels)
    for page in kept.values():
        check_segments(page, file.filehandle.size)
    if (
        stack
        and layout.dtype is not None
        and stack[1] + math.prod(shape) * layout.dtype.itemsize > file.filehandle.size
    ):
        raise DecodeError(_TRUNCATED)
    return FoundImage(kept, layout, shape, axis, stack[1] if stack else None)


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


def _layout(page: Any) -> Layout:
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
    if not is_color(page) and meaning not in (WHITE_IS_ZERO, BLACK_IS_ZERO):
        name = getattr(meaning, "name", meaning)
        raise DecodeError(f"a TIFF whose values are of the kind {name}: save gray, RGB, or bands where black is zero")
    if meaning == WHITE_IS_ZERO and (page.dtype is None or page.dtype.kind != "u"):
        raise DecodeError(f"a TIFF of {page.dtype} whose white is zero: save it with black as zero")
    orientation = checked_orientation(page.tags.valueof(ORIENTATION))
    is_planar = page.planarconfig == 2 and page.samplesperpixel > 1
    return Layout(tuple(page.shape), page.dtype, bits, int(meaning), orientation, is_planar)


def is_color(page: Any) -> bool:
    """Returns whether the values of a page are RGB, or become so where they are decoded."""
    return page.photometric == _RGB or (page.photometric == _YCBCR and page.compression == JPEG)


def check_segments(page: Any, size: int) -> None:
    """Raises DecodeError for strips or tiles that are missing, beyond the end of the file, or larger than the image."""
    needed, listed = math.prod(page.chunked), min(len(page.dataoffsets), len(page.databytecounts))
    if listed < needed:
        raise DecodeError(f"a damaged TIFF, which lists {listed} of {needed} strips or tiles")
    if max(map(operator.add, page.dataoffsets, page.databytecounts)) > size:
        raise DecodeError(_TRUNCATED)
    tile = page.tilewidth * page.tilelength if page.is_tiled else 0
    if tile > max(4 * page.imagewidth * page.imagelength, _MAX_TILE):
        raise DecodeError(f"a TIFF with tiles of {page.tilewidth} x {page.tilelength}, larger than the image")
