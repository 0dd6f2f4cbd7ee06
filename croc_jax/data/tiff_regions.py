"""Reads regions of TIFF files, of which only the tiles or strips that a region touches are read and decoded."""

import functools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Real

from croc_jax.data.decoding import Size
from croc_jax.data.orientation import UPRIGHT, checked_orientation, is_sideways
from croc_jax.data.pixel_modes import REDUCED_OR_MASK, WHITE_IS_ZERO, DecodeError
from croc_jax.data.stored_arrays import MAX_PIXELS
from croc_jax.data.tiff import BLACK_IS_ZERO, JPEG, ORIENTATION, check_segments, find_image, import_readers, is_color
from croc_jax.pixel_format import PixelFormat
from croc_jax.regular_files import open_regular

# The places of a hundred thousand tiles take about 10 MB, and a second to read.
_MAX_PARSED = 16
# Of the tag of extra samples.
_PREMULTIPLIED = 1
# What a compression may add to pixels that it cannot shrink, besides their number of bytes.
_OVERHEAD = 2**16


class Region(NamedTuple):
    """A rectangle of whole pixels."""

    top: int
    left: int
    height: int
    width: int


class _Page(NamedTuple):
    """Where a page is stored, and what decodes a tile or strip by its bytes, None for an empty one, and its number."""

    offsets: Sequence[int]
    counts: Sequence[int]
    decode: Callable[..., tuple[np.ndarray | None, tuple[int, ...], tuple[int, ...]]]


class _Form(NamedTuple):
    """How a TIFF holds an image.

    Attributes:
        pages: its pages, of tifffile.
        planes: planes of a page.
        samples: values of a pixel in a plane.
        size: height and width.
        orientation: EXIF orientation.
        obstacle: why no region of it can be read.
        place: where its values begin, if all of them follow one another.
    """

    pages: Sequence[Any]
    planes: int
    samples: int
    size: Size
    orientation: int
    obstacle: str = ""
    place: int | None = None


class TiffImage:
    """The image in a TIFF file, by its header.

    Attributes:
        size: height and width of the image, upright if it has to be decoded whole.
        obstacle: why no region of it can be read, as the end of a sentence on it; "" if they can.
    """

    def __init__(self, path: str | os.PathLike, pixels: PixelFormat) -> None:
        """Reads the header.

        Raises:
            DecodeError: for a damaged one, or an image of another format.
            OSError: if the file cannot be read.
            ValueError: if the libraries that read TIFF are not installed.
        """
        tifffile, _ = import_readers()
        self._path, self._pixels = os.fspath(path), pixels
        try:
            with open_regular(path) as file, tifffile.TiffFile(file) as tiff:
                self._read_header((_find_colors if pixels.is_rgb8 else _find_channels)(tiff, pixels))
        except (OSError, DecodeError):
            raise
        except Exception as error:
            # Of many types; a lack of memory is what a damaged header asks for.
            raise DecodeError(f"a damaged TIFF ({type(error).__name__}: {' '.join(str(error).split())})") from None

    def _read_header(self, form: _Form) -> None:
        page, self.obstacle = form.pages[0], form.obstacle
        self._planes, self._samples, self.size = form.planes, form.samples, form.size
        self._dtype, self._nodata, self._is_big_endian = page.dtype, page.nodata, page.parent.byteorder == ">"
        self._tile = (
            Size(page.tilelength, page.tilewidth) if page.is_tiled else Size(page.rowsperstrip, form.size.width)
        )
        # Whether the values of each page follow one another.
        self._is_plain = page.is_final or form.place is not None
        if form.orientation != UPRIGHT:
            self.obstacle = self.obstacle or "its orientation tag turns it"
        elif not self._is_plain and math.prod(self._tile) > MAX_PIXELS:
            self.obstacle = f"its strips have more than {MAX_PIXELS // 10**6} million pixels"
        if self.obstacle and is_sideways(form.orientation):
            self.size = Size(*reversed(self.size))
        self._pages = []
        for one in form.pages:
            options = {"jpegtables": one.jpegtables, "jpegheader": page.jpegheader} if page.compression == JPEG else {}
            offsets = one.dataoffsets if form.place is None else (form.place,)
            self._pages.append(_Page(offsets, one.databytecounts, functools.partial(page.decode, **options)))

    def read(self, region: Region) -> Real[np.ndarray, "h w c"]:
        """Returns the values of a region as they are stored, channels last; as 8-bit RGB, gray is repeated.

        Args:
            region: a rectangle inside the image, to whose regions there is no obstacle.

        Raises:
            DecodeError: for damaged tiles, or a compression that is not known.
            OSError: if the file cannot be read.
        """
        planes = []
        with open_regular(self._path) as file:
            for page in self._pages:
                if self._is_plain:
                    planes += self._read_rows(page, region, file.fileno())
                else:
                    planes += [self._read_tiles(page, plane, region, file.fileno()) for plane in range(self._planes)]
        image = np.concatenate(planes, axis=-1)
        if self._pixels.is_rgb8:
            image = np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image[..., :3]
        return image

    def _read_rows(self, page: _Page, region: Region, descriptor: int) -> Iterator[np.ndarray]:
        """Yields the values of each plane of a page whose values are stored as they are."""
        dtype, pixel = (
            self._dtype.newbyteorder(">" if self._is_big_endian else "<"),
            self._dtype.itemsize * self._samples,
        )
        for plane in range(self._planes):
            out = bytearray()
            for row in range(region.top, region.top + region.height):
                place = ((plane * self.size.height + row) * self.size.width + region.left) * pixel
                out += _read_exactly(descriptor, page.offsets[0] + place, region.width * pixel)
            values = np.frombuffer(out, dtype).reshape(region.height, region.width, self._samples)
            yield values.astype(self._dtype, copy=False)

    def _read_tiles(self, page: _Page, plane: int, region: Region, descriptor: int) -> np.ndarray:
        """Returns the values of one plane, and all samples, of a page."""
        out = np.full((region.height, region.width, self._samples), self._nodata, self._dtype)
        down, across = (-(-side // tile) for side, tile in zip(self.size, self._tile, strict=True))
        bottom, right = region.top + region.height, region.left + region.width
        most = 2 * self._tile.height * self._tile.width * self._samples * self._dtype.itemsize + _OVERHEAD
        for row in range(region.top // self._tile.height, -(-bottom // self._tile.height)):
            for column in range(region.left // self._tile.width, -(-right // self._tile.width)):
                number = (plane * down + row) * across + column
                tile = _decode_tile(page, number, descriptor, most)
                if tile is None:
                    continue
                top, left = row * self._tile.height, column * self._tile.width
                # What the tile and the region share, in the coordinates of the image.
                first, last = max(top, region.top), min(top + tile.shape[0], bottom)
                start, end = max(left, region.left), min(left + tile.shape[1], right)
                part = tile[first - top : last - top, start - left : end - left]
                out[first - region.top :, start - region.left :][: part.shape[0], : part.shape[1]] = part
        return out


def _find_channels(tiff: Any, pixels: PixelFormat) -> _Form:
    """Returns how a TIFF holds an image of any format but 8-bit RGB; DecodeError if it holds none."""
    found = find_image(tiff, pixels, max_pixels=math.inf)
    layout, pages = found.layout, list(found.pages.values())
    is_in_front = len(found.shape) == 3 and found.axis == 0
    size = Size(*(found.shape[1:] if is_in_front else found.shape[:2]))
    obstacle = ""
    if len(pages) > 1 and not is_in_front:
        obstacle = "its rows are pages"
    elif layout.meaning == WHITE_IS_ZERO:
        obstacle = "its white is zero"
    elif layout.dtype is None or layout.bits != 8 * layout.dtype.itemsize:
        obstacle = f"its values have {layout.bits} bits"
    planes = pixels.channels if is_in_front and len(pages) == 1 else 1
    samples = pixels.channels if not is_in_front else 1
    return _Form(pages, planes, samples, size, layout.orientation, obstacle, found.place)


def _find_colors(tiff: Any, pixels: PixelFormat) -> _Form:
    """Returns how a TIFF holds an image that becomes 8-bit RGB without a change of values; else, an obstacle."""
    series, page = tiff.series[0], tiff.series[0].keyframe
    planes, _, height, width, samples = page.shaped
    channels, dtype = planes * samples, page.dtype
    is_alpha = channels == 4 and _PREMULTIPLIED not in page.extrasamples
    is_gray = page.photometric == BLACK_IS_ZERO and channels == 1
    obstacle = ""
    if len(series.pages) > 1 or series.size != page.size or page.imagedepth != 1 or page.subfiletype & REDUCED_OR_MASK:
        obstacle = "it has several pages, or none but previews"
    elif dtype != np.uint8 or page.bitspersample != 8:
        obstacle = f"its values are {page.bitspersample} bits of {dtype}"
    elif not is_gray and not (is_color(page) and (channels == 3 or is_alpha)):
        obstacle = f"it holds {channels} channels of photometric interpretation {int(page.photometric)}"
    if not obstacle:
        check_segments(page, tiff.filehandle.size)
    orientation = checked_orientation(page.tags.valueof(ORIENTATION))
    return _Form([page], planes, samples, Size(height, width), orientation, obstacle)


def _decode_tile(page: _Page, number: int, descriptor: int, most: int) -> Real[np.ndarray, "h w c"] | None:
    """Returns a tile or strip, or None for one that is not stored; DecodeError for a damaged one."""
    try:
        offset, count = page.offsets[number], page.counts[number]
        if not offset or not count:
            return None
        if count > most:
            raise DecodeError(f"tile {number} takes {count} bytes, more than its pixels need")
        tile, _, _ = page.decode(_read_exactly(descriptor, offset, count), number)
        return None if tile is None else tile[0]
    except (OSError, DecodeError):
        raise
    except Exception as error:
        # Each codec has its own.
        raise DecodeError(f"tile {number}: {type(error).__name__}: {' '.join(str(error).split())}") from None


def _read_exactly(descriptor: int, offset: int, count: int) -> bytes:
    # Threads share no position in the file.
    found = os.pread(descriptor, count, offset)
    if len(found) < count:
        raise DecodeError(f"the file ends at byte {offset + len(found)}, {count - len(found)} too early")
    return found


def open_tiff(path: str | os.PathLike, pixels: PixelFormat) -> TiffImage:
    """Returns the image in a TIFF file, with the header of the last few files kept; errors are those of `TiffImage`."""
    status = os.stat(path)
    return _open_tiff(os.fspath(path), pixels, status.st_mtime_ns, status.st_size)


@functools.lru_cache(_MAX_PARSED)
def _open_tiff(path: str, pixels: PixelFormat, changed: int, size: int) -> TiffImage:
    del changed, size
    return TiffImage(path, pixels)
