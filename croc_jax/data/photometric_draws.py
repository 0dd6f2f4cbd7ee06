"""The random choices of the photometric augmentation, for images of any format."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from croc_jax.data.config import PhotometricConfig

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


class Draws(NamedTuple):
    """The random choices for one view.

    Attributes:
        jitter: whether to jitter colors.
        factors: brightness, contrast and saturation as factors, hue as a shift in turns.
        ranks: place in the order, 0 to 3, of each of the four.
        grayscale: whether to drop colors.
        blur_radius: standard deviation in pixels; 0 for none.
        solarize: whether to invert the bright values.
    """

    jitter: Bool[Array, ""]
    factors: Float[Array, " 4"]
    ranks: Int[Array, " 4"]
    grayscale: Bool[Array, ""]
    blur_radius: Float[Array, ""]
    solarize: Bool[Array, ""]


def draw(key: Array, config: PhotometricConfig, probability: Float[Array, " 4"]) -> Draws:
    """Draws the choices for one view with torchvision's laws.

    Args:
        key: key of the view.
        config: ranges of the draws.
        probability: probabilities of jitter, grayscale, blur and solarization.
    """
    amount, order, chance, strength = jnp.split(jax.random.uniform(key, (13,)), (4, 8, 12))
    spread = np.array([config.brightness, config.contrast, config.saturation, config.hue], np.float32)
    center = np.array([1, 1, 1, 0], np.float32)
    low, high = np.maximum(center - spread, np.array([0, 0, 0, -np.inf], np.float32)), center + spread
    jittered, gray, blurred, solarized = chance < probability
    least_radius, most_radius = config.blur_radius
    radius = least_radius + strength[0] * (most_radius - least_radius)
    return Draws(
        jitter=jittered,
        factors=jnp.asarray(low + amount * (high - low)),
        ranks=rank(order),
        grayscale=gray,
        blur_radius=jnp.where(blurred, radius, 0.0),
        solarize=solarized,
    )


def rank(numbers: Float[Array, " n"]) -> Int[Array, " n"]:
    """Returns how many numbers come before each one: a uniform permutation without a sort."""
    ties = (numbers[None] == numbers[:, None]) & np.tri(len(numbers), k=-1, dtype=bool)
    return jnp.sum((numbers[None] < numbers[:, None]) | ties, axis=1)
