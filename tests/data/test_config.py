"""Settings that cannot work are refused, and the message names field and value."""

import pytest

from croc_jax.data.config import DataConfig, LocalViewsConfig, PhotometricConfig, ViewsConfig
from croc_jax.data.prepare import PrepareConfig


@pytest.mark.parametrize(
    ("config", "settings"),
    [
        (ViewsConfig, {"crop_size": 0}),
        (ViewsConfig, {"scale": (1.0, 0.25)}),
        (ViewsConfig, {"scale": (0.25, 1.5)}),
        (ViewsConfig, {"ratio": (0.0, 1.0)}),
        (ViewsConfig, {"flip_probability": 2.0}),
        (ViewsConfig, {"decoding": "quick"}),
        (LocalViewsConfig, {"count": -1}),
        (LocalViewsConfig, {"crop_size": 0}),
        (LocalViewsConfig, {"scale": (0.0, 0.25)}),
        (PhotometricConfig, {"hue": 0.6}),
        (PhotometricConfig, {"contrast": -0.1}),
        (PhotometricConfig, {"blur_radius": (2.0, 0.1)}),
        (PhotometricConfig, {"solarize_probability": (0.0, 1.2)}),
        (DataConfig, {"max_bad_fraction": 2}),
        (DataConfig, {"weights": (1.0,)}),
        (DataConfig, {"weights": (0.0,), "sources": ("a",)}),
        (DataConfig, {"sources": ("",)}),
        (PrepareConfig, {"short_side": 0, "sources": ("a",)}),
        (PrepareConfig, {"shard_size": 0, "sources": ("a",)}),
    ],
)
def test_impossible_settings_are_named(config, settings):
    name = next(iter(settings))
    with pytest.raises(ValueError, match=rf"^{name}="):
        config(**settings)
