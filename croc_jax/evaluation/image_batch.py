"""The images that a backbone encodes: a batch as it is, or a list of arrays and Pillow images of one size."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Array, Real
from PIL import Image, ImageOps

from croc_jax.data.pixel_modes import raw_mode, to_rgb
from croc_jax.pixel_format import RGB8, PixelFormat

EncodeInput = Real[np.ndarray | Array, "b H W c"] | Sequence[Real[np.ndarray | Array, "H W c"] | Image.Image]


def as_batch(images: EncodeInput, pixels: PixelFormat = RGB8) -> Real[np.ndarray | Array, "b H W c"]:
    """Returns images as one array.

    Args:
        images: an array `[b H W c]`, or a list of arrays `[H W c]` and Pillow images, all of one size. Pillow images
            become 8-bit RGB, upright by their EXIF orientation, as in `croc_jax.data.decoding`; of other formats, they
            hold the values of one channel, or those of as many as they have.
        pixels: channels and type that the images must have.

    Raises:
        ValueError: for an empty batch, other shapes or types, or images of different sizes.
    """
    if isinstance(images, Sequence):
        if not images:
            raise ValueError("images is empty: give at least one")
        images = _stack([_as_array(image, index, pixels) for index, image in enumerate(images)])
    if isinstance(images, Image.Image):
        raise ValueError("images is a single Pillow image: give a list, [image]")
    shape, dtype = getattr(images, "shape", None), getattr(images, "dtype", type(images).__name__)
    if shape is None or len(shape) != 4 or not _fits(shape, dtype, pixels):
        hint = "; give a list of one image, [image]" if shape is not None and len(shape) == 3 else ""
        raise ValueError(f"images {shape} {dtype}: expected [b H W {pixels.channels}] {pixels.dtype}{hint}")
    if not shape[0]:
        raise ValueError(f"images {shape} is empty: give at least one")
    return images


def _fits(shape: tuple[int, ...], dtype: object, pixels: PixelFormat) -> bool:
    return shape[-1] == pixels.channels and dtype == np.dtype(pixels.dtype)


def _as_array(image: object, index: int, pixels: PixelFormat) -> np.ndarray:
    if isinstance(image, Image.Image):
        try:
            if not pixels.is_rgb8:
                return _checked(np.atleast_3d(np.asarray(ImageOps.exif_transpose(image))), index, pixels)
            raw = raw_mode(image)
            return to_rgb(ImageOps.exif_transpose(image), raw)
        except Exception as error:  # A file that is opened but not loaded may be damaged in many ways.
            raise ValueError(f"images[{index}] cannot be used: {' '.join(str(error).split())}") from error
    if not hasattr(image, "shape"):
        form = f"[H W {pixels.channels}] {pixels.dtype}"
        raise ValueError(f"images[{index}] is {type(image).__name__}: give arrays {form}, or Pillow images")
    return _checked(np.asarray(image), index, pixels)


def _checked(array: np.ndarray, index: int, pixels: PixelFormat) -> np.ndarray:
    if array.ndim != 3 or not _fits(array.shape, array.dtype, pixels):
        form = f"[H W {pixels.channels}] {pixels.dtype}"
        raise ValueError(f"images[{index}] {array.shape} {array.dtype}: expected {form}")
    return array


def _stack(arrays: list[np.ndarray]) -> Real[np.ndarray, "b H W c"]:
    for index, array in enumerate(arrays):
        if array.shape != arrays[0].shape:
            (height, width, _), (first_height, first_width, _) = array.shape, arrays[0].shape
            raise ValueError(
                f"images[{index}] has {height} x {width} pixels, and images[0] {first_height} x {first_width}: "
                "resize them to one size, or encode each size by itself"
            )
    return np.stack(arrays)
