"""Weights for RGB images start networks for other channels."""

import jax
import numpy as np
import pytest

from croc_jax.checkpoints.rgb_filters import spread_filters
from croc_jax.models import BackboneConfig, make_backbone
from tests.checkpoints.tiny_weights import equal_trees, random_params

TRANSFORMER = BackboneConfig(variant="vit_tiny", width=8, depth=1, num_heads=2, patch_size=4, dtype="float32")
CHANNELS, BANDS = 5, (3, 2, 1)


def repeat(array, axis):
    return np.repeat(array, CHANNELS, axis=axis)


@pytest.mark.parametrize("rgb_channels", [(), BANDS])
def test_tokens_are_those_of_the_rgb_images(rgb_channels):
    params, rng = random_params(TRANSFORMER, size=8), np.random.default_rng(0)
    rgb, images = rng.standard_normal((2, 8, 8, 3)), rng.standard_normal((2, 8, 8, CHANNELS))
    if rgb_channels:
        images[..., list(BANDS)] = rgb
    else:
        rgb, images = np.repeat(images[..., :1], 3, axis=-1), repeat(images[..., :1], -1)
    spread = spread_filters(params, channels=CHANNELS, rgb_channels=rgb_channels)
    apply_fn = jax.jit(make_backbone(TRANSFORMER, image_size=8).apply)
    found, expected = apply_fn({"params": spread}, images), apply_fn({"params": params}, rgb)
    assert np.std(expected.patches) > 0.1
    np.testing.assert_allclose(found.patches, expected.patches, atol=1e-5)
    np.testing.assert_allclose(found.cls, expected.cls, atol=1e-5)


def test_stems_of_convolutional_networks():
    kernel = np.random.default_rng(0).standard_normal((7, 7, 3, 4)).astype(np.float32)
    params = {"stem": {"kernel": kernel}, "norm": {"scale": np.arange(4.0)}}
    even = spread_filters(params, channels=CHANNELS, rgb_channels=())["stem"]["kernel"]
    np.testing.assert_allclose(even, repeat(kernel.mean(axis=2, keepdims=True) * 3 / CHANNELS, 2), atol=1e-6)
    found = spread_filters(params, channels=CHANNELS, rgb_channels=BANDS)
    np.testing.assert_array_equal(found["stem"]["kernel"][:, :, list(BANDS)], kernel)
    assert not found["stem"]["kernel"][:, :, [0, 4]].any()
    equal_trees(found["norm"], params["norm"])
    # A channel that is named for all three colors sees their sum.
    gray = spread_filters(params, channels=1, rgb_channels=(0, 0, 0))["stem"]["kernel"]
    np.testing.assert_allclose(gray, kernel.sum(axis=2, keepdims=True), atol=1e-6)
