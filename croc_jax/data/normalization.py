"""From values as they are stored to the numbers that a network takes: mapped to 0 to 1, then normalized."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real

from croc_jax.models.config import IMAGENET_MEAN, IMAGENET_STD
from croc_jax.pixel_format import RGB8, PixelFormat

Colors = tuple[float, ...]


def normalize(
    images: Real[Array, "*batch H W c"],
    mean: Colors = IMAGENET_MEAN,
    std: Colors = IMAGENET_STD,
    pixels: PixelFormat = RGB8,
) -> Float[Array, "*batch H W c"]:
    """Returns (values - mean) / standard deviation, in float32, of values that were mapped to 0 to 1.

    Args:
        images: values as they are stored, channels last.
        mean: of each channel; ImageNet's unless the backbone was trained with others (`image_mean`).
        std: standard deviation, likewise (`image_std`).
        pixels: which values become 0 and 1; of 8-bit images, 0 and 255.
    """
    if not pixels.is_rgb8:
        return standardize(to_unit(images, pixels), mean, std)
    scale = (1 / (255 * np.array(std))).astype(np.float32)
    return images.astype(jnp.float32) * scale - (np.array(mean) / np.array(std)).astype(np.float32)


def to_unit(images: Real[Array, "*batch H W c"], pixels: PixelFormat) -> Float[Array, "*batch H W c"]:
    """Returns stored values mapped to 0 to 1, those beyond its range clipped, in float32."""
    low, high = (np.array(values, np.float32) for values in pixels.limits)
    return jnp.clip((images.astype(jnp.float32) - low) / (high - low), 0, 1)


def standardize(images: Float[Array, "*batch H W c"], mean: Colors, std: Colors) -> Float[Array, "*batch H W c"]:
    """Returns (values - mean) / standard deviation of values from 0 to 1."""
    return (images - np.array(mean, np.float32)) / np.array(std, np.float32)
