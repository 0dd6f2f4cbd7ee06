"""Small sets of images of other formats, whose classes differ in spectrum and in pattern, in any kind of source."""

import dataclasses
import io
from typing import NamedTuple

import numpy as np
import tifffile
from PIL import Image

from croc_jax.data.config import PhotometricConfig
from croc_jax.pixel_format import PixelFormat
from tests.data.test_shards import write_records, write_tar

NUM_CLASSES = 2
# What images of any number of channels take, as mild as such images: light is what some of their classes differ in.
ONE = PhotometricConfig(
    saturation=0.0, hue=0.0, grayscale_probability=0.0, brightness=0.2, contrast=0.2,
    blur_radius=(0.1, 0.5), solarize_probability=(0.0, 0.0), noise=0.05,
)  # fmt: skip
SEVERAL = dataclasses.replace(ONE, channel_drop_probability=0.1)


class ChannelSet(NamedTuple):
    """A format, the files that it comes in, and what a recipe says about it besides."""

    pixels: PixelFormat
    suffix: str
    photometric: PhotometricConfig


SETS = {
    "13 bands of 16 bits": ChannelSet(PixelFormat(channels=13, dtype="uint16", range=(0.0, 10_000.0)), ".tif", SEVERAL),
    "RGBA": ChannelSet(PixelFormat(channels=4), ".png", SEVERAL),
    "4 channels of 8 bits": ChannelSet(PixelFormat(channels=4), ".tif", SEVERAL),
    "gray float": ChannelSet(PixelFormat(channels=1, dtype="float32", range=(-1.0, 3.0)), ".tif", ONE),
}


def draw_image(label, pixels, rng, size=40):
    """Returns an image as it is stored: the pattern and the spectrum of its class, under any light.

    Stripes run in one direction or the other, from any place on. In one class the even channels are brighter than the
    odd ones, in the other darker; the one channel of gray images is bright or dark.
    """
    y, x = np.mgrid[:size, :size] * (2 * np.pi / 8)
    stripes = np.sin((x if label else y) + rng.uniform(0, 2 * np.pi))
    levels = np.where(np.arange(pixels.channels) % 2 == label, -0.2, 0.2)
    unit = 0.5 + levels + rng.uniform(-0.1, 0.1) + rng.uniform(0.1, 0.3) * stripes[..., None]
    unit = unit + rng.normal(0, 0.05, unit.shape)
    low, high = (np.array(values) for values in pixels.limits)
    values = low + np.clip(unit, 0, 1) * (high - low)
    return (values if pixels.dtype == "float32" else np.round(values)).astype(pixels.dtype)


def encode_image(image, suffix):
    """Returns the bytes of a file."""
    stream = io.BytesIO()
    if suffix == ".tif":
        image = image[..., 0] if image.shape[-1] == 1 else image
        tifffile.imwrite(stream, image, photometric="minisblack", planarconfig=None if image.ndim == 2 else "contig")
    elif suffix == ".npy":
        np.save(stream, image)
    else:
        Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


def draw_set(of, count, seed=0, size=40):
    """Returns images as they are stored, and their classes, each as often as any other."""
    rng, labels = np.random.default_rng(seed), np.arange(count) % NUM_CLASSES
    return np.stack([draw_image(label, of.pixels, rng, size) for label in labels]), labels


def write_set(folder, of, images):
    """Writes the images as files, in a tar file and as ArrayRecord; returns {kind: recipe.data.sources}."""
    files = {f"{index:04d}{of.suffix}": encode_image(image, of.suffix) for index, image in enumerate(images)}
    (folder / "files").mkdir()
    for name, encoded in files.items():
        (folder / "files" / name).write_bytes(encoded)
    write_tar(folder / "images.tar", files)
    write_records(folder / "images.array_record", *files.values())
    return {
        "folder": (f"folder:{folder / 'files'}",),
        "tar": (f"tar:{folder / 'images.tar'}",),
        "arrayrecord": (f"arrayrecord:{folder / 'images.array_record'}",),
    }
