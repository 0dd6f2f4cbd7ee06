"""Settings that cannot work are refused, and the message names field and value."""

import pytest

from croc_jax.data.config import DataConfig, LocalViewsConfig, PhotometricConfig, ViewsConfig
from croc_jax.data.prepare import PrepareConfig

IMPOSSIBLE = {
    ViewsConfig: [
        {"crop_size": 0}, {"scale": (1.0, 0.25)}, {"scale": (0.25, 1.5)}, {"ratio": (0.0, 1.0)},
        {"flip_probability": 2.0}, {"decoding": "quick"},
    ],
    LocalViewsConfig: [{"count": -1}, {"crop_size": 0}, {"scale": (0.0, 0.25)}],
    PhotometricConfig: [
        {"hue": 0.6}, {"contrast": -0.1}, {"blur_radius": (2.0, 0.1)}, {"solarize_probability": (0.0, 1.2)},
    ],
    DataConfig: [
        {"max_bad_fraction": 2}, {"weights": (1.0,)}, {"weights": (0.0,), "sources": ("a",)}, {"sources": ("",)},
    ],
    PrepareConfig: [{"short_side": 0, "sources": ("a",)}, {"shard_size": 0, "sources": ("a",)}],
}  # fmt: skip


@pytest.mark.parametrize("config", IMPOSSIBLE)
def test_impossible_settings_are_named(config):
    for settings in IMPOSSIBLE[config]:
        with pytest.raises(ValueError, match=rf"^{next(iter(settings))}="):
            config(**settings)
