"""An image of a source as the network sees it, or why it cannot be read."""

import dataclasses
import functools
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Real

from croc_jax.data.channels import decode_pixels
from croc_jax.data.decoding import MAX_PIXELS, DecodeError
from croc_jax.data.labeled.classes import center_crop
from croc_jax.data.resizing import resize_with_pillow
from croc_jax.data.sources.base import ImageSource
from croc_jax.evaluation.embedding_files import FORMATS
from croc_jax.evaluation.settings import check_choice, check_positive
from croc_jax.machine_errors import find_fault, read_patiently
from croc_jax.pixel_format import PixelFormat


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbeddingConfig:
    """What is computed of each image, and how it is stored.

    Attributes:
        image_size: side of the square that the network sees, in pixels.
        resize: pixels that the shorter side is resized to before the square in the middle is cut out; None resizes
            the whole image to the square, whatever its shape.
        window: side of the windows that larger images were divided into by the source, each an image with a row of its
            own; 0 if they were not.
        patches: also store the tokens of all patches, in float16.
        format: "parquet" or "npy".
        shard_size: images of the source a Parquet file.
    """

    image_size: int = 224
    resize: int | None = 256
    window: int = 0
    patches: bool = False
    format: str = "parquet"
    shard_size: int = 16384

    def __post_init__(self) -> None:
        """Raises ValueError, naming the field and the value, for settings that cannot work."""
        check_choice(self, "format", FORMATS)
        check_positive(self, "image_size", "shard_size")
        if self.resize is not None and self.resize < self.image_size:
            raise ValueError(
                f"image_size={self.image_size}, resize={self.resize}: the square must lie within the resized image"
            )

    @property
    def preprocessing(self) -> dict[str, Any]:
        """How an image becomes what the network sees, in words too."""
        size = self.image_size
        rule = f"the whole image to {size} x {size} pixels"
        if self.resize is not None:
            rule = f"shorter side to {self.resize} pixels, then the {size} x {size} pixels in the middle"
        if self.window:
            rule = f"windows of {self.window} pixels; {rule}"
        return {
            "window": self.window,
            "image_size": size,
            "resize": self.resize,
            "rule": f"{rule}; bicubic, antialiased",
        }


class Loaded(NamedTuple):
    """An image as the network sees it, and its own height and width; or why there is none.

    Attributes:
        pixels: the square, of values as they are stored.
        size: height and width of the upright image.
        reason: why the image cannot be read.
        is_gone: whether its file is missing.
    """

    pixels: Real[np.ndarray, "H W c"] | None = None
    size: tuple[int, int] = (0, 0)
    reason: str = ""
    is_gone: bool = False


def load_image(source: ImageSource, index: int, config: EmbeddingConfig, pixels: PixelFormat) -> Loaded:
    """Returns an image as the network sees it, or why it cannot be read.

    Args:
        source: the images.
        index: index of the image.
        config: says how it is resized.
        pixels: the format that it must have.

    Raises:
        OSError: for a fault of the machine, which says nothing about the image.
    """
    try:
        image = decode_pixels(read_patiently(functools.partial(source.__getitem__, index)), pixels)
        height, width, _ = image.shape
        if config.resize is not None and max(image.shape[:2]) * config.resize**2 > MAX_PIXELS * min(image.shape[:2]):
            raise DecodeError(
                f"{width} x {height} pixels, with the shorter side resized to {config.resize}, are too many"
            )
        return Loaded(to_square(image, config), (height, width))
    except (DecodeError, OSError, MemoryError) as error:
        if fault := find_fault(error, source.name(index)):
            raise fault from error
        return Loaded(reason=str(error), is_gone=isinstance(error, FileNotFoundError))


def to_square(image: Real[np.ndarray, "H W c"], config: EmbeddingConfig) -> Real[np.ndarray, "s s c"]:
    """Returns an image resized, and cut if so, to the square that the network sees."""
    size = config.image_size
    if config.resize is not None:
        return center_crop(image, resize=config.resize, image_size=size)
    return resize_with_pillow(image, (size, size))
