"""Reads regions of TIFF files, of which only the tiles or strips that a region touches are read and decoded."""

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Real

from croc_jax.data.decoding import Size
from croc_jax.data.orientation import UPRIGHT, checked_orientation, is_sideways
from croc_jax.data.pixel_modes import REDUCED_OR_MASK, DecodeError
from croc_jax.data.stored_arrays import MAX_PIXELS
from croc_jax.data.tiff import import_readers
from croc_jax.pixel_format import PixelFormat
from croc_jax.regular_files import open_regular

if TYPE_CHECKING:
    import tifffile

# The places of a hundred thousand tiles take about 10 MB, and a second to read.
_MAX_PARSED = 16
# Tags, and values of them.
_ORIENTATION = 274
_BLACK_IS_ZERO, _RGB, _YCBCR, _JPEG = 1, 2, 6, 7
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
    offsets: Sequence[int]
    counts: Sequence[int]
    # Decodes a tile or strip by its bytes, None for an empty one, and its number.
    decode: Callable[..., tuple[np.ndarray | None, tuple[int, ...], tuple[int, ...]]]


class TiffImage:
    """The image in a TIFF file, by its header; pages of one size are its channels.

    Attributes:
        size: height and width of the stored image.
        is_sideways: whether the image is seen with rows and columns exchanged.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        """Reads the header.

        Raises:
            DecodeError: for a damaged one.
            OSError: if the file cannot be read.
            ValueError: if the libraries that read TIFF are not installed.
        """
        tifffile, _ = import_readers()
        self._path = os.fspath(path)
        try:
            with open_regular(path) as file, tifffile.TiffFile(file) as tiff:
                self._read_series(tiff.series[0])
        except (OSError, DecodeError):
            raise
        except Exception as error:
            # Of many types; a lack of memory is what a damaged header asks for.
            raise DecodeError(f"a damaged TIFF ({type(error).__name__}: {' '.join(str(error).split())})") from None

    def _read_series(self, series: "tifffile.TiffPageSeries") -> None:
        page = series.keyframe
        self._planes, depth, height, width, self._samples = page.shaped
        self.size, self._dtype, self._nodata = Size(height, width), page.dtype, page.nodata
        orientation = checked_orientation(page.tags.valueof(_ORIENTATION))
        self.is_sideways, self._is_upright = is_sideways(orientation), orientation == UPRIGHT
        # Photometric interpretation, and the meaning of a fourth sample.
        self._meaning, self._extra = int(page.photometric), tuple(map(int, page.extrasamples))
        self._is_jpeg = int(page.compression) == _JPEG
        # Whether values have all the bits of their type.
        self._is_full = page.dtype is not None and page.bitspersample == 8 * page.dtype.itemsize
        # Whether all bytes of a page follow one another as its values do.
        self._is_plain, self._is_big_endian = page.is_final, page.parent.byteorder == ">"
        self._tile = Size(page.tilelength, page.tilewidth) if page.is_tiled else Size(page.rowsperstrip, width)
        pages = [one for one in series.pages if one and one.parent is page.parent and len(one.dataoffsets)]
        # No pages that are missing or in other files, no volumes, no several images in a page, and no previews.
        is_whole = depth == 1 and min(self._tile) > 0 and len(pages) * page.size == series.size
        self._pages = []
        for one in pages if is_whole and not page.subfiletype & REDUCED_OR_MASK else ():
            options = {"jpegtables": one.jpegtables, "jpegheader": page.jpegheader} if self._is_jpeg else {}
            decode = functools.partial(page.decode, **options)
            self._pages.append(_Page(one.dataoffsets, one.databytecounts, decode))

    def obstacle(self, pixels: PixelFormat) -> str:
        """Returns why no regions of this image can be read in a format; "" if they can."""
        pages = len(self._pages)
        channels = pages * self._planes * self._samples
        if not pages or (pages > 1 and channels != pages):
            return "its pages do not form one image of channels"
        if not self._is_upright:
            return "its orientation tag turns it"
        if not self._is_plain and self._tile.height * self._tile.width > MAX_PIXELS:
            return f"its strips have more than {MAX_PIXELS // 10**6} million pixels"
        is_color = self._meaning == _RGB or (self._meaning == _YCBCR and self._is_jpeg)
        if pixels.is_rgb8:
            # What is read without a loss, see `croc_jax.data.pixel_modes`.
            is_alpha = channels == 4 and _PREMULTIPLIED not in self._extra
            is_known = is_color and (channels == 3 or is_alpha) if channels > 1 else self._meaning == _BLACK_IS_ZERO
            is_known = is_known and pages == 1
        else:
            is_known = channels == pixels.channels and (is_color or self._meaning == _BLACK_IS_ZERO)
        dtype = self._dtype
        # All numbers become floating-point ones where an image is decoded.
        is_taken = dtype is not None and (dtype.kind in "iuf" if pixels.dtype == "float32" else dtype == pixels.dtype)
        if not (is_known and is_taken and self._is_full):
            kind = f"photometric interpretation {self._meaning}"
            return f"it holds {channels} channels of {dtype} ({kind}), and {pixels.describe()} are asked for"
        return ""

    def read(self, region: Region, pixels: PixelFormat) -> Real[np.ndarray, "h w c"]:
        """Returns the values of a region as they are stored, channels last; as 8-bit RGB, gray is repeated.

        Args:
            region: a rectangle inside the image.
            pixels: a format for which there is no `obstacle`.

        Raises:
            DecodeError: for damaged tiles, or a compression that is not known.
            OSError: if the file cannot be read.
        """
        planes = []
        with open_regular(self._path) as file:
            for page in self._pages:
                planes += (
                    self._read_rows(page, region, file.fileno())
                    if self._is_plain
                    else [self._read_tiles(page, plane, region, file.fileno()) for plane in range(self._planes)]
                )
        image = np.concatenate(planes, axis=-1)
        if pixels.is_rgb8:
            image = np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image[..., :3]
        return image

    def _read_rows(self, page: _Page, region: Region, descriptor: int) -> Iterator[np.ndarray]:
        """Yields the values of each plane of a page whose values are stored as they are."""
        assert self._dtype is not None
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
        assert self._dtype is not None
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


def open_tiff(path: str | os.PathLike) -> TiffImage:
    """Returns the image in a TIFF file, with the header of the last few files kept; errors are those of `TiffImage`."""
    status = os.stat(path)
    return _open_tiff(os.fspath(path), status.st_mtime_ns, status.st_size)


@functools.lru_cache(_MAX_PARSED)
def _open_tiff(path: str, changed: int, size: int) -> TiffImage:
    del changed, size
    return TiffImage(path)
