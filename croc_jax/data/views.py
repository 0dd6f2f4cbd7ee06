"""From the bytes of an image to its random crops and their boxes, on the host."""

import io
import math
from typing import NamedTuple

import numpy as np
import simplejpeg
from jaxtyping import Float32, UInt8
from PIL import Image

from croc_jax.data.config import ViewsConfig

NUM_VIEWS = 2

_BOX_TRIES = 10

Pixels = UInt8[np.ndarray, "H W 3"]


class DecodeError(ValueError):
    """The bytes are no readable image; the message tells why."""


class Box(NamedTuple):
    """A crop in whole pixels of the original image, and whether its view is mirrored."""

    top: int
    left: int
    height: int
    width: int
    flip: bool


def decode(encoded: bytes) -> Pixels:
    """Returns an image as RGB bytes.

    Gray images repeat their value, transparency is dropped, and 16-bit values lose their lower
    half. EXIF rotation is ignored, as by torchvision.

    Args:
        encoded: the contents of a JPEG, PNG or WebP file.

    Raises:
        DecodeError: for anything that cannot be decoded as a whole.
    """
    if simplejpeg.is_jpeg(encoded):
        try:
            return simplejpeg.decode_jpeg(encoded, colorspace="RGB")
        except ValueError:
            # Rare color spaces and harmless defects: Pillow may know better.
            pass
    try:
        return _decode_with_pillow(encoded)
    except Exception as error:  # Pillow's readers raise whatever their parsing stumbles over.
        raise DecodeError(f"{type(error).__name__}: {error}") from error


def _decode_with_pillow(encoded: bytes) -> Pixels:
    with Image.open(io.BytesIO(encoded)) as image:
        image.load()
        if image.mode.startswith("I"):
            gray = (np.asarray(image) >> 8).astype(np.uint8)
            return np.repeat(gray[..., None], 3, axis=-1)
        if "transparency" in image.info:
            image = image.convert("RGBA")
        return np.asarray(image.convert("RGB"))


def sample_box(generator: np.random.Generator, height: int, width: int, config: ViewsConfig) -> Box:
    """Draws a box by the law of torchvision's RandomResizedCrop, and a flip.

    Args:
        generator: of the record.
        height: of the image in pixels.
        width: of the image in pixels.
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
    """The largest central box of an allowed aspect ratio, for images that defeat the draw."""
    crop_height = min(height, max(1, round(width / ratio[0])))
    crop_width = min(width, max(1, round(height * ratio[1])))
    return Box((height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width, False)


def crop_view(image: Pixels, box: Box, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """Crops, resizes bicubically with antialiasing, then mirrors if the box says so.

    Args:
        image: the original.
        box: within it; pixels beyond the box do not leak in.
        size: side of the view.
    """
    crop = Image.fromarray(image[box.top : box.top + box.height, box.left : box.left + box.width])
    view = np.asarray(crop.resize((size, size), Image.Resampling.BICUBIC))
    return view[:, ::-1] if box.flip else view


def two_views(
    image: Pixels, generator: np.random.Generator, config: ViewsConfig
) -> tuple[UInt8[np.ndarray, "v H W 3"], Float32[np.ndarray, "v 5"]]:
    """Returns two independent random views of an image and their boxes.

    Args:
        image: the original.
        generator: of the record.
        config: of the crops.
    """
    height, width, _ = image.shape
    boxes = [sample_box(generator, height, width, config) for _ in range(NUM_VIEWS)]
    views = np.stack([crop_view(image, box, config.crop_size) for box in boxes])
    return views, np.array(boxes, np.float32)
