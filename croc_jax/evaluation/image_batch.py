"""The images that a backbone encodes: a batch as it is, or a list of arrays and Pillow images of one size."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Array, UInt8
from PIL import Image, ImageOps

from croc_jax.data.pixel_modes import raw_mode, to_rgb

EncodeInput = UInt8[np.ndarray | Array, "b H W 3"] | Sequence[UInt8[np.ndarray | Array, "H W 3"] | Image.Image]


def as_batch(images: EncodeInput) -> UInt8[np.ndarray | Array, "b H W 3"]:
    """Returns images as one array.

    Args:
        images: an array `[b H W 3]` in uint8, or a list of arrays `[H W 3]` and Pillow images, all of one size.
            Pillow images become RGB, upright by their EXIF orientation, as in `croc_jax.data.decoding`.

    Raises:
        ValueError: for an empty batch, other shapes or types, or images of different sizes.
    """
    if isinstance(images, Sequence):
        if not images:
            raise ValueError("images is empty: give at least one")
        images = _stack([_as_array(image, index) for index, image in enumerate(images)])
    if isinstance(images, Image.Image):
        raise ValueError("images is a single Pillow image: give a list, [image]")
    shape, dtype = getattr(images, "shape", None), getattr(images, "dtype", type(images).__name__)
    if shape is None or len(shape) != 4 or shape[-1] != 3 or dtype != np.uint8:
        hint = "; give a list of one image, [image]" if shape is not None and len(shape) == 3 else ""
        raise ValueError(f"images {shape} {dtype}: expected [b H W 3] uint8{hint}")
    if not shape[0]:
        raise ValueError(f"images {shape} is empty: give at least one")
    return images


def _as_array(image: object, index: int) -> np.ndarray:
    if isinstance(image, Image.Image):
        try:
            raw = raw_mode(image)
            return to_rgb(ImageOps.exif_transpose(image), raw)
        except Exception as error:  # A file that is opened but not loaded may be damaged in many ways.
            raise ValueError(f"images[{index}] cannot be used: {' '.join(str(error).split())}") from error
    if not hasattr(image, "shape"):
        raise ValueError(f"images[{index}] is {type(image).__name__}: give arrays [H W 3] uint8, or Pillow images")
    array = np.asarray(image)
    if array.ndim != 3 or array.shape[-1] != 3 or array.dtype != np.uint8:
        raise ValueError(f"images[{index}] {array.shape} {array.dtype}: expected [H W 3] uint8")
    return array


def _stack(arrays: list[np.ndarray]) -> UInt8[np.ndarray, "b H W 3"]:
    for index, array in enumerate(arrays):
        if array.shape != arrays[0].shape:
            (height, width, _), (first_height, first_width, _) = array.shape, arrays[0].shape
            raise ValueError(
                f"images[{index}] has {height} x {width} pixels, and images[0] {first_height} x {first_width}: "
                "resize them to one size, or encode each size by itself"
            )
    return np.stack(arrays)
