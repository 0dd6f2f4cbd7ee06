"""Colors change as the standard library converts them."""

import colorsys

import jax
import numpy as np
import pytest

from croc_jax.evaluation.distortion import change_saturation, distort, turn_hue
from croc_jax.evaluation.settings import DistortionConfig

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


def jitted(key, images, **config):
    return np.asarray(jax.jit(lambda images: distort(jax.random.key(key), images, DistortionConfig(**config)))(images))


def test_each_change_happens_to_half_of_the_images_within_its_range():
    images = np.full((200, 1, 1, 3), (0.5, 0.4, 0.3), np.float32)
    assert np.array_equal(jitted(0, images, **NOTHING), images)
    for name, largest in (("brightness", 0.1), ("contrast", 0.5), ("saturation", 0.5), ("hue", 0.1)):
        changed = jitted(1, images, **NOTHING | {name: largest})
        same = np.abs(changed - images).max(axis=(1, 2, 3)) < 1e-6
        assert 70 < same.sum() < 130, name
        h, s, v = np.array([colorsys.rgb_to_hsv(*one) for one in changed[:, 0, 0].astype(float)]).T
        h0, s0, v0 = colorsys.rgb_to_hsv(0.5, 0.4, 0.3)
        change = {
            "brightness": changed[:, 0, 0, 0] - 0.5,
            "contrast": v / v0 - 1,
            "saturation": s / s0 - 1,
            "hue": (h - h0 + 0.5) % 1 - 0.5,
        }[name]
        assert np.abs(change).max() <= largest + 1e-5 and change.min() < -0.8 * largest and change.max() > 0.8 * largest


def test_any_number_of_channels_gets_another_brightness_and_contrast():
    images = RNG.random((40, 2, 2, 5), np.float32)
    changed = jitted(0, images, saturation=0, hue=0)
    assert changed.shape == images.shape and 0 <= changed.min() and changed.max() <= 1
    assert np.mean(np.abs(changed - images).max(axis=(1, 2, 3)) > 1e-3) > 0.5
