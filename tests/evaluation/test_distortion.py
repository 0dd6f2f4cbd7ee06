"""Colors change as the standard library converts them."""

import colorsys

import jax
import numpy as np
import pytest

from croc_jax.evaluation.distortion import change_saturation, distort, turn_hue
from croc_jax.evaluation.settings import DistortionConfig

turn_hue, change_saturation = jax.jit(turn_hue), jax.jit(change_saturation, static_argnames="kind")
RNG = np.random.default_rng(0)
NOTHING = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}


@pytest.mark.parametrize(("shift", "factor"), [(0.1, 1.4), (-0.45, 0.6), (0.5, 3.0)])
def test_hue_and_saturation_are_those_of_hsv(shift, factor):
    image = RNG.random((8, 9, 3), np.float32)
    image[0], image[1, :, 1], image[2, :, 2] = image[0, :, :1], image[1, :, 0], image[2, :, 1]
    image[3] = 0
    hsv = np.apply_along_axis(lambda rgb: colorsys.rgb_to_hsv(*rgb), -1, image)
    turned = np.apply_along_axis(lambda one: colorsys.hsv_to_rgb((one[0] + shift) % 1, *one[1:]), -1, hsv)
    np.testing.assert_allclose(turn_hue(image, shift), turned, atol=2e-6)
    richer = np.apply_along_axis(lambda one: colorsys.hsv_to_rgb(one[0], min(1, one[1] * factor), one[2]), -1, hsv)
    np.testing.assert_allclose(change_saturation(image, factor, kind="hsv"), richer, atol=2e-6)
    gray = (image @ np.array([0.2989, 0.587, 0.114]))[..., None]
    blended = np.clip(gray + factor * (image - gray), 0, 1)
    np.testing.assert_allclose(change_saturation(image, factor, kind="gray"), blended, atol=2e-6)


def jitted(images, **config):
    config = DistortionConfig(**NOTHING | config)
    return np.asarray(jax.jit(lambda images: distort(jax.random.key(1), images, config))(images))


def check_spread(change, largest):
    """Half of the images change, by as much as that."""
    assert 70 < np.sum(np.abs(change) < 1e-5) < 130
    assert -largest <= change.min() < -0.8 * largest and 0.8 * largest < change.max() <= largest


def test_half_of_the_images_have_another_hue():
    images = np.full((200, 1, 1, 3), (0.5, 0.4, 0.3), np.float32)
    hue, saturation, value = np.array([colorsys.rgb_to_hsv(*one) for one in jitted(images, hue=0.1)[:, 0, 0]]).T
    expected = colorsys.rgb_to_hsv(0.5, 0.4, 0.3)
    check_spread((hue - expected[0] + 0.5) % 1 - 0.5, 0.1 + 1e-5)
    np.testing.assert_allclose([saturation, value], np.broadcast_to(np.array(expected)[1:, None], (2, 200)), atol=1e-5)


def test_any_number_of_channels_gets_another_brightness_and_contrast():
    images = np.broadcast_to(np.linspace(0.2, 0.4, 5, dtype=np.float32), (200, 2, 1, 5))
    changed = jitted(images, brightness=0.1, contrast=0.5)
    factors = (changed[:, 0, 0, 4] - changed[:, 0, 0, 0]) / 0.2
    check_spread(factors - 1, 0.5 + 1e-5)
    # The contrast is a factor of all values, after the brightness.
    np.testing.assert_allclose(
        changed, changed[:, :1, :, :1] + factors[:, None, None, None] * (images - 0.2), atol=1e-6
    )
    check_spread(changed[:, 0, 0, 0] / factors - 0.2, 0.1 + 1e-5)
    assert jitted(np.full((9, 1, 1, 1), 0.9, np.float32), brightness=1.0).max() <= 1
