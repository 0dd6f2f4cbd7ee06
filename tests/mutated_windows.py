"""Files that are read in windows, files of statistics, and what reads them; for tests/mutations.py."""

import contextlib

import numpy as np
import tifffile

from croc_jax.data.channels import decode_pixels
from croc_jax.data.decoding import DecodeError
from croc_jax.data.sources.files import FileSource
from croc_jax.data.sources.windows import WindowSource
from croc_jax.data.statistics import Statistics, read_statistics, write_statistics
from croc_jax.pixel_format import RGB8, PixelFormat
from tests.mutated_pixels import check, paths_below

BANDS = PixelFormat(channels=4, dtype="uint16")
STATISTICS = Statistics(
    channels=2, dtype="uint16", range=(1.0, 2.5, 3.0, 4.0), mean=(0.25, 0.5), std=(0.125, 0.1), percentiles=(0.5, 99.5),
    images=3, total=4, pixels=12, window=0, sources=("folder:a",), digest="ab", version="1.0",
)  # fmt: skip


def write_windows(root):
    bands = np.random.default_rng(0).integers(0, 2**16, (40, 56, 4)).astype(np.uint16)
    colors, planes = (bands[..., :3] >> 8).astype(np.uint8), np.moveaxis(bands, -1, 0)
    gray = {"photometric": "minisblack"}
    tifffile.imwrite(root / "rgb.tif", colors, tile=(16, 16), compression="zlib")
    tifffile.imwrite(root / "rgb_jpeg.tif", colors, tile=(16, 16), compression="jpeg")
    tifffile.imwrite(root / "rgb_plain.tif", colors, rowsperstrip=8)
    tifffile.imwrite(root / "big.tif", bands, tile=(16, 32), compression="lzw", predictor=True, bigtiff=True, **gray)
    tifffile.imwrite(root / "planar.tif", planes, tile=(16, 16), compression="zstd", planarconfig="separate", **gray)
    tifffile.imwrite(root / "pages.tif", planes, rowsperstrip=8, compression="deflate", **gray)
    tifffile.imwrite(root / "in_a_row.tif", planes, **gray)
    np.save(root / "a.npy", bands)
    return paths_below(root)


def read_windows(root, file):
    """Each window is an image of the format, or unreadable."""
    pixels = RGB8 if file.name.startswith("rgb") else BANDS
    source = WindowSource(FileSource(root, [file.name]), 24, pixels, spec=f"list:{root}")
    for index in range(min(len(source), 12)):
        check("\n" not in source.name(index), "a name")
        with contextlib.suppress(OSError, DecodeError):
            image = decode_pixels(source[index], pixels)
            check(image.shape[-1] == pixels.channels and image.dtype == pixels.dtype, f"{image.shape} {image.dtype}")
            check(len(source) == 1 or max(image.shape[:2]) <= 24, f"a window of {image.shape}")


def write_measured(root):
    write_statistics(root / "a.json", STATISTICS)
    return [root / "a.json"]


def read_measured(root, file):
    found = read_statistics(file)
    check(PixelFormat(channels=found.channels, dtype=found.dtype, range=found.range).channels == len(found.std), "std")
