"""Photometric operations on images of any number of channels and any depth, in float32 on the device.

They work on planes `[c H W]` of values from 0 to 1, and clip to these; `jax.vmap` them over more. Images of three
channels are RGB: they have saturation, hue and grayscale, too, and are changed as 8-bit ones are, without the rounding.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from croc_jax.data.config import PhotometricConfig
from croc_jax.data.photometric_draws import BRIGHTNESS, CONTRAST, HUE, SATURATION, Draws, rank

Planes = Float[Array, "c H W"]
Scalar = Float[Array, ""]

_RGB = 3
# ITU-R 601, as of 8-bit images.
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)[:, None, None]
# A Gaussian is cut off at so many standard deviations, as SciPy does by default: 6e-5 of it lie beyond.
_REACH = 4.0


def apply_draws(planes: Planes, draws: Draws, *, max_blur_radius: float = 2.0) -> Planes:
    """Returns one view after jitter, grayscale, blur and solarization, in the order of 8-bit RGB images.

    Args:
        planes: planes of one image.
        draws: the random choices; of other numbers of channels than three, those for colors have no effect.
        max_blur_radius: the largest that `draws.blur_radius` can be.
    """
    planes = jnp.where(draws.jitter, jitter(planes, draws.factors, draws.ranks), planes)
    if len(planes) == _RGB:
        planes = jnp.where(draws.grayscale, to_grayscale(planes), planes)
    planes = gaussian_blur(planes, draws.blur_radius, max_radius=max_blur_radius)
    return jnp.where(draws.solarize, solarize(planes), planes)


def jitter(planes: Planes, factors: Float[Array, " 4"], ranks: Int[Array, " 4"]) -> Planes:
    """Changes brightness and contrast, of RGB images also saturation and hue, in a given order.

    Args:
        planes: planes of one image.
        factors: see `Draws`.
        ranks: see `Draws`.
    """
    if len(planes) != _RGB:
        two = jnp.stack([ranks[BRIGHTNESS], ranks[CONTRAST]])
        return _blend_turns(planes, factors, rank(two), turns=(0, 2))
    # Around the one turn of the hue, as in `photometric.jitter`.
    hue_rank = ranks[HUE]
    planes = _blend_turns(planes, factors, jnp.where(ranks < hue_rank, ranks, -1)[:HUE], turns=(0, 3))
    planes = adjust_hue(planes, factors[HUE])
    return _blend_turns(planes, factors, jnp.where(ranks > hue_rank, ranks, -1)[:HUE], turns=(1, 4))


def _blend_turns(planes: Planes, factors: Array, ranks: Array, *, turns: tuple[int, int]) -> Planes:
    """Applies in each turn what has its rank; a loop, so that the compiler does not fold turns into one another."""
    factors = factors[: len(ranks)]

    def blend(turn: Array, planes: Planes) -> Planes:
        is_due = ranks == turn
        toward = jnp.where(is_due[CONTRAST], _contrast_center(planes), 0)
        if len(planes) == _RGB:
            toward = toward + jnp.where(is_due[SATURATION], _luma(planes), 0)
        return _blend(planes, toward, 1 + jnp.sum(jnp.where(is_due, factors - 1, 0)))

    return jax.lax.fori_loop(*turns, blend, planes)


def adjust_brightness(planes: Planes, factor: Scalar) -> Planes:
    """Scales all values; 0 gives black, 1 changes nothing."""
    return _blend(planes, jnp.zeros(()), factor)


def adjust_contrast(planes: Planes, factor: Scalar) -> Planes:
    """Scales RGB values about the mean gray value of the image, those of other channels about the mean of each.

    About a mean over all channels, channels that are dark as a whole would be clipped away.
    """
    return _blend(planes, _contrast_center(planes), factor)


def adjust_saturation(planes: Planes, factor: Scalar) -> Planes:
    """Scales all colors of an RGB image about their gray value."""
    return _blend(planes, _luma(planes), factor)


def adjust_hue(planes: Planes, shift: Scalar) -> Planes:
    """Turns the hue of an RGB image in HSV.

    Args:
        planes: planes of one image.
        shift: in turns, from -0.5 to 0.5.
    """
    red, green, blue = planes
    value = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = value - jnp.minimum(jnp.minimum(red, green), blue)
    divisor = jnp.where(chroma > 0, chroma, 1)
    sixths = jnp.where(
        red == value,
        (green - blue) / divisor,
        jnp.where(green == value, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    sixths = sixths + 6 * shift

    def plane(offset: int) -> Array:
        angle = sixths + offset
        angle = angle - 6 * jnp.floor(angle / 6)
        return value - chroma * jnp.clip(jnp.minimum(angle, 4 - angle), 0, 1)

    return jnp.stack([plane(5), plane(3), plane(1)])


def to_grayscale(planes: Planes) -> Planes:
    """Gives all planes of an RGB image the gray value."""
    return jnp.broadcast_to(_luma(planes), planes.shape)


def gaussian_blur(planes: Planes, radius: Scalar, *, max_radius: float = 2.0) -> Planes:
    """Blurs by a sampled Gaussian along each axis, edge values continuing beyond the image.

    Args:
        planes: planes of one image.
        radius: standard deviation in pixels; 0 changes nothing.
        max_radius: the largest that `radius` can be; sets the length of the kernel.
    """
    distance = np.arange(math.ceil(_REACH * max_radius) + 1, dtype=np.float32)
    weights = jnp.exp(-(distance**2) / (2 * jnp.maximum(radius**2, 1e-12)))
    weights = weights / (2 * jnp.sum(weights) - weights[0])
    return _weigh_neighbors(_weigh_neighbors(planes, weights, axis=2), weights, axis=1)


def solarize(planes: Planes) -> Planes:
    """Inverts the values from 0.5 up."""
    return jnp.where(planes >= 0.5, 1 - planes, planes)


def disturb(
    key: Array, image: Float[Array, "H W c"], *, config: PhotometricConfig, std: tuple[float, ...]
) -> Float[Array, "H W c"]:
    """Adds noise to a normalized image and drops channels, as often as the configuration says.

    Noise is not clipped to the range, so that its mean is 0 in dark channels too. A dropped channel becomes 0, which is
    its mean. Where all would be dropped, one of them stays, each with the same chance.

    Args:
        key: key of the image, used for nothing else.
        image: one image, already normalized.
        config: strengths and probabilities.
        std: what each channel was divided by.
    """
    choices, values = jax.random.split(key)
    chance, strength, *_ = numbers = jax.random.uniform(choices, (2 + image.shape[-1],))
    if config.noise:
        deviation = jnp.where(chance < config.noise_probability, config.noise * strength, 0)
        image = image + jax.random.normal(values, image.shape) * (deviation / np.array(std, np.float32))
    if config.channel_drop_probability:
        remains = numbers[2:]
        stays = (remains >= config.channel_drop_probability) | (remains == jnp.max(remains))
        image = jnp.where(stays, image, 0)
    return image


def _blend(planes: Planes, toward: Array, factor: Array) -> Planes:
    return jnp.clip(toward + factor * (planes - toward), 0, 1)


def _luma(planes: Planes) -> Float[Array, "1 H W"]:
    return jnp.sum(planes * _LUMA, axis=0, keepdims=True)


def _contrast_center(planes: Planes) -> Float[Array, "#c 1 1"]:
    return jnp.mean(_luma(planes) if len(planes) == _RGB else planes, axis=(1, 2), keepdims=True)


def _weigh_neighbors(planes: Planes, weights: Float[Array, " taps"], *, axis: int) -> Planes:
    """Sums the neighbors along an axis at distances 0, 1 and so on, on both sides, with their weights."""
    size, reach = planes.shape[axis], len(weights) - 1
    padding = [(reach, reach) if i == axis else (0, 0) for i in range(planes.ndim)]
    # For the same reason as in `photometric`.
    padded = jax.lax.optimization_barrier(jnp.pad(planes, padding, mode="edge"))

    def shifted(by: int) -> Planes:
        return jax.lax.slice_in_dim(padded, reach + by, reach + by + size, axis=axis)

    pairs = (weights[by] * (shifted(-by) + shifted(by)) for by in range(1, reach + 1))
    return sum(pairs, weights[0] * planes)
