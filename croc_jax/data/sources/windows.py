"""Windows of large images, each an image of its own; of a TIFF or a .npy file, only what a window covers is read."""

import itertools
import logging
import math
import multiprocessing
import os
import time
from collections.abc import Iterator
from multiprocessing.pool import ThreadPool

import numpy as np
from jaxtyping import Real

from croc_jax.data.bad_records import printable
from croc_jax.data.channels import decode_pixels
from croc_jax.data.decoding import DecodeError, Size, read_header
from croc_jax.data.sources.base import ImageSource, tell
from croc_jax.data.sources.combined import CombinedSource
from croc_jax.data.sources.files import FileSource
from croc_jax.data.stored_arrays import MAX_PIXELS, TOO_MANY, TooManyPixelsError, channel_axis, is_npy, write_npy
from croc_jax.data.tiff import is_tiff
from croc_jax.data.tiff_regions import Region, open_tiff
from croc_jax.machine_errors import is_machine_error
from croc_jax.pixel_format import PixelFormat
from croc_jax.regular_files import open_regular, read_regular

# Most headers are shorter; of a file whose header is not, all is read.
_HEADER_BYTES, _MAGIC_BYTES = 2**16, 16
# Threads that read headers, on a network file system a round trip or two each, and how many they take at a time.
_THREADS, _CHUNK = 16, 32
_SECONDS_BETWEEN_LINES = 10.0
_TILED = "convert it to a tiled TIFF, such as by vips tiffsave IN OUT.tif --tile --bigtiff"


class WindowSource:
    """Image files, those that are larger than a window in a grid of windows.

    A grid begins at the top left corner; its last row and column are moved in, so that all windows have the full side,
    or that of the image where it is shorter, and cover the image. They are named FILE[TOP:LEFT]. Smaller images are
    one window, whose bytes are those of the file.
    """

    def __init__(self, source: ImageSource, window: int, pixels: PixelFormat, *, spec: str) -> None:
        """Reads the header of each file.

        An image with a damaged header counts as one window, which is unreadable.

        Args:
            source: the files.
            window: side of a window in pixels.
            pixels: format of the images.
            spec: what the source was asked for by, for messages.

        Raises:
            ValueError: for images that are no files, if no header can be read, and if there is a TIFF but no library
                that reads it.
            OSError: for a fault of the machine.
        """
        if not _has_files(source):
            raise ValueError(
                f"window={window}: {spec} holds no files on disk, of which a part could be read: name files, by a "
                "folder or by list:FILE, or leave images whole (window=0)"
            )
        self._source, self._window, self._pixels = source, window, pixels
        self._sizes = self._read_sizes(spec)
        counts = [len(_starts(height, window)) * len(_starts(width, window)) for height, width in self._sizes.tolist()]
        self._ends = np.array(list(itertools.accumulate(counts)), np.int64)

    def __len__(self) -> int:
        """Returns the number of windows."""
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> bytes:
        """Returns a window as a .npy file `[h w c]` of values as they are stored, or the file of a small image.

        Raises:
            OSError: if the file cannot be read, or its header or this part of the image is damaged.
        """
        image, region = self._find(index)
        size, path = Size(*self._sizes[image].tolist()), self._source.name(image)
        try:
            if not size.height:
                # To raise what was wrong with it.
                _read_size(path, self._pixels)
                raise DecodeError("its header could not be read at the start of the program, but can be now")
            if max(size) <= self._window:
                return self._source[image]
            return write_npy(_read_region(path, size, region, self._pixels))
        except DecodeError as error:
            # What sources raise for an image that is unreadable.
            raise OSError(str(error)) from error

    def name(self, index: int) -> str:
        """Returns FILE[TOP:LEFT] of a window, or FILE of a small image."""
        image, region = self._find(index)
        name = self._source.name(image)
        return f"{name}[{region.top}:{region.left}]" if max(self._sizes[image]) > self._window else name

    def entries(self) -> Iterator[tuple[str, int]]:
        """Yields the entries of the files."""
        return self._source.entries()

    def _find(self, index: int) -> tuple[int, Region]:
        image = int(np.searchsorted(self._ends, index, "right"))
        height, width = self._sizes[image].tolist()
        tops, lefts = _starts(height, self._window), _starts(width, self._window)
        row, column = divmod(index - int(self._ends[image - 1] if image else 0), len(lefts))
        return image, Region(tops[row], lefts[column], min(height, self._window), min(width, self._window))

    def _read_sizes(self, spec: str) -> np.ndarray:
        """Returns height and width of each image; zeros for a damaged header."""
        total, begin = len(self._source), time.monotonic()
        sizes, last_line, num_bad, example = np.zeros((total, 2), np.int64), begin, 0, ""
        with ThreadPool(_THREADS) as pool:
            for index, found in enumerate(pool.imap(self._try_size, range(total), _CHUNK)):
                if isinstance(found, Size):
                    sizes[index] = found
                else:
                    num_bad, example = num_bad + 1, f"{self._source.name(index)} ({found})"
                now = time.monotonic()
                if now - last_line > _SECONDS_BETWEEN_LINES and multiprocessing.parent_process() is None:
                    last_line, speed = now, (index + 1) / (now - begin)
                    left = (total - index) / speed
                    logging.warning("headers of %d/%d images, %.0f/s, %.0f s left", index + 1, total, speed, left)
        if num_bad == total:
            raise ValueError(f"no image of {spec} has a readable header, such as {printable(example)}")
        if num_bad:
            tell(f"{spec}: {num_bad} images have no readable header and count as unreadable, such as {example}")
        return sizes

    def _try_size(self, index: int) -> Size | str:
        try:
            return _read_size(self._source.name(index), self._pixels)
        except (DecodeError, OSError) as error:
            if is_machine_error(error):
                raise
            return str(error)


def _has_files(source: ImageSource) -> bool:
    if isinstance(source, CombinedSource):
        return all(map(_has_files, source.sources))
    return isinstance(source, FileSource)


def _starts(side: int, window: int) -> list[int]:
    """Returns where the windows along a side begin."""
    return [min(start, max(side - window, 0)) for start in range(0, max(side, 1), window)]


def _read_size(path: str | os.PathLike, pixels: PixelFormat) -> Size:
    """Returns the size of an image, upright where it will be.

    Raises:
        DecodeError: for a damaged header, and for an image that is too large to decode whole, and has to be.
        OSError: if the file cannot be read.
    """
    with open_regular(path) as file:
        start = file.read(_HEADER_BYTES)
    if is_tiff(start):
        image = open_tiff(path, pixels)
        if image.obstacle and math.prod(image.size) > MAX_PIXELS:
            raise DecodeError(f"{TOO_MANY}, and no part of it can be read, since {image.obstacle}: {_TILED}")
        return image.size
    if is_npy(start):
        return Size(*_map(path, pixels).shape[:2])
    try:
        try:
            return read_header(start).size
        except DecodeError:
            if len(start) < _HEADER_BYTES:
                raise
            return read_header(read_regular(path)).size
    except TooManyPixelsError as error:
        raise DecodeError(f"{TOO_MANY}, and no part of it can be read in this format: {_TILED}") from error


def _read_region(path: str, size: Size, region: Region, pixels: PixelFormat) -> Real[np.ndarray, "h w c"]:
    """Returns a part of an image of known size; the rest is not read if it is a TIFF or .npy file that allows it."""
    with open_regular(path) as file:
        start = file.read(_MAGIC_BYTES)
    if is_tiff(start) and not open_tiff(path, pixels).obstacle:
        return open_tiff(path, pixels).read(region)
    image = _map(path, pixels) if is_npy(start) else decode_pixels(read_regular(path), pixels)
    if image.shape[:2] != size:
        raise DecodeError(f"{image.shape[1]} x {image.shape[0]} pixels where its header states {size[1]} x {size[0]}")
    part = image[region.top : region.top + region.height, region.left : region.left + region.width]
    return part.astype(part.dtype.newbyteorder("="), order="C")


def _map(path: str | os.PathLike, pixels: PixelFormat) -> Real[np.ndarray, "H W c"]:
    """Returns the array in a .npy file, of which what is used is read; DecodeError if it is damaged, or no image."""
    try:
        image = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError:
        raise
    except Exception as error:
        # Its header is a text that NumPy evaluates.
        raise DecodeError(f"a damaged .npy file ({' '.join(str(error).split())})") from error
    axis = channel_axis(image.shape, image.dtype, pixels, max_pixels=math.inf)
    return np.moveaxis(image if image.ndim == 3 else image[..., None], axis, -1)
