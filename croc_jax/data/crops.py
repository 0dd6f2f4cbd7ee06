"""Random crops of an image and their boxes, on the host."""

import dataclasses
import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Real, UInt8

from croc_jax.data.channels import decode_pixels
from croc_jax.data.config import LocalViewsConfig, ViewsConfig
from croc_jax.data.decoding import DecodeError, Pixels, Size, decode, decode_at_least, read_size
from croc_jax.data.resizing import resize_bicubic, resize_by_area, resize_image
from croc_jax.pixel_format import RGB8, PixelFormat

NUM_VIEWS = 2

_BOX_TRIES = 10


class Box(NamedTuple):
    """A crop in whole pixels of the original image, and whether its view is mirrored."""

    top: int
    left: int
    height: int
    width: int
    flip: bool


def sample_box(generator: np.random.Generator, height: int, width: int, config: ViewsConfig) -> Box:
    """Draws a box with the distribution of torchvision's RandomResizedCrop, and a flip.

    Args:
        generator: random numbers of the record.
        height: height of the image in pixels.
        width: width of the image in pixels.
        config: areas, aspect ratios and the chance of a flip.
    """
    flip = bool(generator.random() < config.flip_probability)
    low, high = np.log(config.ratio)
    for _ in range(_BOX_TRIES):
        area = height * width * generator.uniform(*config.scale)
        ratio = math.exp(generator.uniform(low, high))
        crop_height, crop_width = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < crop_height <= height and 0 < crop_width <= width:
            top = int(generator.integers(height - crop_height + 1))
            left = int(generator.integers(width - crop_width + 1))
            return Box(top, left, crop_height, crop_width, flip)
    return _central_box(height, width, config.ratio)._replace(flip=flip)


def _central_box(height: int, width: int, ratio: tuple[float, float]) -> Box:
    """Returns the largest central box of an allowed aspect ratio, for images where no draw fits."""
    crop_height = min(height, max(1, round(width / ratio[0])))
    crop_width = min(width, max(1, round(height * ratio[1])))
    return Box((height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width, False)


def crop_view(
    image: Real[np.ndarray, "H W c"], box: Box, size: int, *, by_area: bool = False
) -> Real[np.ndarray, "size size c"]:
    """Crops, resizes bicubically with antialiasing, then mirrors if the box says so.

    Args:
        image: the original image.
        box: the crop; pixels beyond it have no influence.
        size: side of the view in pixels.
        by_area: average areas instead.
    """
    crop = image[box.top : box.top + box.height, box.left : box.left + box.width]
    view = resize_image(crop, (size, size), by_area=True) if by_area else resize_bicubic(crop, size)
    return view[:, ::-1] if box.flip else view


def two_views(
    image: Pixels, generator: np.random.Generator, config: ViewsConfig
) -> tuple[UInt8[np.ndarray, "v H W 3"], Float32[np.ndarray, "v 5"]]:
    """Returns two independent random views of an image and their boxes.

    Args:
        image: the original image.
        generator: random numbers of the record.
        config: size and distribution of the crops.
    """
    height, width, _ = image.shape
    boxes = [sample_box(generator, height, width, config) for _ in range(NUM_VIEWS)]
    views = np.stack([crop_view(image, box, config.crop_size) for box in boxes])
    return views, np.array(boxes, np.float32)


def random_crops(
    encoded: bytes,
    generator: np.random.Generator,
    config: ViewsConfig,
    local: LocalViewsConfig | None = None,
    pixels: PixelFormat = RGB8,
) -> dict[str, np.ndarray]:
    """Decodes an image and returns its views and boxes, as in one row of a `HostBatch` of the pipeline.

    The boxes are the same whatever `config.decoding`, and those of the views the same with and
    without local ones.

    Args:
        encoded: the contents of an image file.
        generator: random numbers of the record.
        config: size and distribution of the views.
        local: number, size and areas of the local views; none by default.
        pixels: format of the image.

    Raises:
        DecodeError: for an unreadable image.
    """
    local = local or LocalViewsConfig()
    # Other formats are decoded once: their headers tell less.
    image = None if pixels.is_rgb8 else decode_pixels(encoded, pixels)
    size = read_size(encoded) if image is None else Size(*image.shape[:2])
    boxes = [sample_box(generator, *size, config) for _ in range(NUM_VIEWS)]
    as_views = dataclasses.replace(config, scale=local.scale, crop_size=local.crop_size)
    local_boxes = [sample_box(generator, *size, as_views) for _ in range(local.count)]
    sizes = [config.crop_size] * NUM_VIEWS + [local.crop_size] * local.count
    if image is None:
        crops = (_exact_crops if config.decoding == "exact" else _fast_crops)(encoded, size, boxes + local_boxes, sizes)
    else:
        crops = [
            crop_view(image, box, side, by_area=config.decoding == "fast" and side <= min(box.height, box.width))
            for box, side in zip(boxes + local_boxes, sizes, strict=True)
        ]
    found = {"views": np.stack(crops[:NUM_VIEWS]), "boxes": np.array(boxes, np.float32)}
    if local.count:
        found |= {"local_views": np.stack(crops[NUM_VIEWS:]), "local_boxes": np.array(local_boxes, np.float32)}
    return found


def _exact_crops(encoded: bytes, size: Size, boxes: list[Box], sides: list[int]) -> list[np.ndarray]:
    image = decode(encoded)
    if image.shape[:2] != size:
        raise DecodeError(
            f"{image.shape[1]} x {image.shape[0]} pixels where the header states {size.width} x {size.height}"
        )
    return [crop_view(image, box, side) for box, side in zip(boxes, sides, strict=True)]


def _fast_crops(encoded: bytes, size: Size, boxes: list[Box], sides: list[int]) -> list[np.ndarray]:
    """Averages areas of an image that is decoded only as finely as the smallest crop needs."""
    finest = max(side / min(box.height, box.width) for box, side in zip(boxes, sides, strict=True))
    image = decode_at_least(encoded, size, share=finest)
    scale = (image.shape[0] / size.height, image.shape[1] / size.width)
    return [_fast_crop(image, box, scale, side) for box, side in zip(boxes, sides, strict=True)]


def _fast_crop(image: Pixels, box: Box, scale: tuple[float, float], side: int) -> np.ndarray:
    """Crops the pixels that a box covers at least in part, then resizes exactly what it covers."""
    # In pixels of what may be a smaller image.
    top, bottom = (place * scale[0] for place in (box.top, box.top + box.height))
    left, right = (place * scale[1] for place in (box.left, box.left + box.width))
    first_row, first_column = math.floor(top), math.floor(left)
    bottom, right = min(bottom, image.shape[0]), min(right, image.shape[1])
    crop = image[first_row : math.ceil(bottom), first_column : math.ceil(right)]
    view = resize_by_area(crop, side, (left - first_column, top - first_row, right - left, bottom - top))
    return view[:, ::-1] if box.flip else view
