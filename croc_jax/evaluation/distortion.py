"""Random changes of brightness, contrast, saturation and hue, as MMSegmentation's photometric distortion draws them."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from croc_jax.evaluation.settings import DistortionConfig

Image = Float[Array, "H W c"]
# Of red, green and blue in gray, as in torchvision.
_LUMA = (0.2989, 0.587, 0.114)


def distort(key: Array, images: Float[Array, "b H W c"], config: DistortionConfig) -> Float[Array, "b H W c"]:
    """Changes each image at random; each of the four changes happens to half of the images.

    Args:
        key: key of this batch.
        images: values from 0 to 1, which the result's are clipped to; saturation and hue need red, green and blue.
        config: largest changes.
    """
    return jax.vmap(lambda one, image: _distort_image(one, image, config))(jax.random.split(key, len(images)), images)


def _distort_image(key: Array, image: Image, config: DistortionConfig) -> Image:
    order, *keys = jax.random.split(key, 5)
    brightness, contrast, saturation, hue = (
        _draw(one, largest)
        for one, largest in zip(keys, (config.brightness, config.contrast, config.saturation, config.hue), strict=True)
    )
    contrast_first = jax.random.bernoulli(order)
    image = jnp.clip(image + brightness, 0, 1)
    image = jnp.clip(image * jnp.where(contrast_first, 1 + contrast, 1), 0, 1)
    if config.saturation:
        image = change_saturation(image, 1 + saturation, kind=config.saturation_kind)
    if config.hue:
        image = turn_hue(image, hue)
    return jnp.clip(image * jnp.where(contrast_first, 1, 1 + contrast), 0, 1)


def _draw(key: Array, largest: float) -> Float[Array, ""]:
    happens, value = jax.random.split(key)
    return jax.random.bernoulli(happens) * jax.random.uniform(value, minval=-largest, maxval=largest)


def change_saturation(image: Float[Array, "H W 3"], factor: Array, *, kind: str) -> Float[Array, "H W 3"]:
    """Multiplies the saturation of red, green and blue from 0 to 1.

    Args:
        image: colors.
        factor: 0 for gray, 1 for no change.
        kind: "hsv" multiplies the saturation of HSV, up to 1, as OpenCV's users do; "gray" blends with the gray image
            or goes away from it, as torchvision does.
    """
    if kind == "gray":
        gray = jnp.sum(image * jnp.array(_LUMA), axis=-1, keepdims=True)
        return jnp.clip(gray + factor * (image - gray), 0, 1)
    value = image.max(axis=-1, keepdims=True)
    chroma = value - image.min(axis=-1, keepdims=True)
    largest = value / jnp.where(chroma > 0, chroma, 1)
    return value - (value - image) * jnp.where(chroma > 0, jnp.minimum(factor, largest), 1)


def turn_hue(image: Float[Array, "H W 3"], shift: Array) -> Float[Array, "H W 3"]:
    """Adds to the hue, in turns, of red, green and blue from 0 to 1; value and saturation of HSV stay."""
    red, green, blue = (image[..., channel] for channel in range(3))
    value = image.max(axis=-1)
    chroma = value - image.min(axis=-1)
    scale = jnp.where(chroma > 0, chroma, 1)
    sixths = jnp.where(
        value == red,
        (green - blue) / scale,
        jnp.where(value == green, 2 + (blue - red) / scale, 4 + (red - green) / scale),
    )
    # Distance, in sixths of a turn, from where each color is at its fullest.
    places = (sixths[..., None] + 6 * shift + jnp.array([5.0, 3.0, 1.0])) % 6
    return value[..., None] - chroma[..., None] * jnp.clip(jnp.minimum(places, 4 - places), 0, 1)
