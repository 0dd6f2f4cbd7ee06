"""Augmentation of other formats equals float64 references; noise and dropped channels follow their laws."""

import colorsys
import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage, stats

from croc_jax.data import photometric
from croc_jax.data import photometric_channels as operations
from croc_jax.data.config import PhotometricConfig
from croc_jax.data.normalization import normalize
from croc_jax.data.photometric_draws import draw
from croc_jax.pixel_format import PixelFormat

KEY = jax.random.key(0)
# What images of any number of channels take.
ANY = PhotometricConfig(saturation=0.0, hue=0.0, grayscale_probability=0.0)
FIVE = PixelFormat(channels=5, dtype="uint16", range=(100.0, 3000.0))
MEAN, STD = (0.1, 0.2, 0.3, 0.4, 0.5), (0.1, 0.15, 0.2, 0.25, 0.3)
augment = jax.jit(photometric.augment, static_argnums=2)


def planes(channels, seed=0):
    """Blocks with noise, some of them at 0 and 1, of channels that are the darker the later; not square."""
    rng = np.random.default_rng(seed)
    blocks = rng.uniform(-0.2, 1.2, (channels, 5, 7)).repeat(4, 1).repeat(4, 2)
    return np.clip(blocks + rng.normal(0, 0.05, blocks.shape), 0, 1) * np.linspace(1, 0.1, channels)[:, None, None]


def luma(image):
    return np.einsum("chw,c->hw", image, [0.299, 0.587, 0.114])


def center(image):
    return luma(image).mean() if len(image) == 3 else image.mean((1, 2), keepdims=True)


def turned(image, shift):
    hsv = [colorsys.rgb_to_hsv(*color) for color in image.reshape(3, -1).T]
    return np.array([colorsys.hsv_to_rgb((hue + shift) % 1, *others) for hue, *others in hsv]).T.reshape(image.shape)


def blurred(image, radius, reach=8):
    blur = [ndimage.gaussian_filter(plane, radius, radius=reach, mode="nearest") for plane in image]
    return np.stack(blur) if radius else image


REFERENCES = {
    "adjust_brightness": lambda image, factor: np.clip(factor * image, 0, 1),
    "adjust_contrast": lambda image, factor: np.clip(center(image) + factor * (image - center(image)), 0, 1),
    "adjust_saturation": lambda image, factor: np.clip(luma(image) + factor * (image - luma(image)), 0, 1),
    "adjust_hue": turned,
    "gaussian_blur": blurred,
}
# Saturation and hue only exist for three channels.
CASES = [
    ("adjust_brightness", (1, 3, 5), (0.0, 0.6, 1.0, 1.9)),
    ("adjust_contrast", (1, 3, 5), (0.0, 0.6, 1.0, 1.9)),
    ("adjust_saturation", (3,), (0.0, 0.8, 1.0, 2.5)),
    ("adjust_hue", (3,), (-0.5, -0.07, 0.0, 0.1, 0.31)),
    ("gaussian_blur", (1, 5), (0.0, 0.1, 0.7, 2.0)),
]


@pytest.mark.parametrize(("name", "channels", "values"), CASES, ids=[case[0] for case in CASES])
def test_operation_equals_the_reference(name, channels, values):
    operation = jax.jit(getattr(operations, name))
    for count, value in itertools.product(channels, values):
        image = planes(count)
        result = operation(image.astype(np.float32), jnp.float32(value))
        np.testing.assert_allclose(result, REFERENCES[name](image, value), rtol=0, atol=2e-6, err_msg=f"{value}")


def test_colors_without_parameter_equal_the_references():
    image = planes(3)
    gray = operations.to_grayscale(image.astype(np.float32))
    np.testing.assert_allclose(gray, np.broadcast_to(luma(image), image.shape), rtol=0, atol=1e-6)
    values = np.array([0.0, 0.25, 0.499, 0.5, 1.0], np.float32)
    np.testing.assert_allclose(operations.solarize(values), [0, 0.25, 0.499, 0.5, 0], rtol=0, atol=1e-7)


def test_a_long_blur_takes_a_longer_kernel():
    image, blur = planes(1), jax.jit(lambda image: operations.gaussian_blur(image, jnp.float32(3.7), max_radius=4.0))
    np.testing.assert_allclose(blur(image.astype(np.float32)), blurred(image, 3.7, reach=16), rtol=0, atol=2e-6)


@pytest.mark.parametrize("channels", [3, 5])
def test_jitter_applies_the_operations_in_every_order(channels):
    names = ["adjust_brightness", "adjust_contrast", "adjust_saturation", "adjust_hue"]
    image, factors, jitter = planes(channels), (1.3, 0.7, 1.6, 0.09), jax.jit(operations.jitter)
    for order in itertools.permutations(range(4)):
        expected = image
        for i in order:
            expected = expected if channels != 3 and i > 1 else REFERENCES[names[i]](expected, factors[i])
        result = jitter(image.astype(np.float32), jnp.array(factors), jnp.argsort(jnp.array(order)))
        np.testing.assert_allclose(result, expected, rtol=0, atol=5e-6, err_msg=f"{order}")


def unit(views, pixels):
    low, high = (np.array(values) for values in pixels.limits)
    return np.clip((views - low) / (high - low), 0, 1)


def expected_view(image, draws):
    """One view `[H W c]` of values from 0 to 1 after what the draws say, in float64."""
    image, names = np.moveaxis(image, -1, 0), list(REFERENCES)[:4]
    is_rgb = len(image) == 3
    for i in np.argsort(draws.ranks) if draws.jitter else ():
        image = REFERENCES[names[i]](image, float(draws.factors[i])) if is_rgb or i < 2 else image
    if is_rgb and draws.grayscale:
        image = np.broadcast_to(luma(image), image.shape)
    image = blurred(image, float(draws.blur_radius))
    return np.moveaxis(np.where(image >= 0.5, 1 - image, image) if draws.solarize else image, 0, -1)


@pytest.mark.parametrize("channels", [3, 5])
def test_a_view_is_what_the_draws_of_its_place_say_on_any_devices(channels):
    pixels = PixelFormat(channels=channels, dtype="uint16", range=(100.0, 3000.0) * channels)
    mean, std = MEAN[:channels], STD[:channels]
    config = PhotometricConfig(blur_probability=(0.4, 0.3), solarize_probability=(0.2, 0.4), jitter_probability=0.4)
    if channels != 3:
        config = dataclasses.replace(config, saturation=0.0, hue=0.0, grayscale_probability=0.0)
    # A fifth lies beyond the range.
    views = np.random.default_rng(1).uniform(0, 3300, (8, 2, 4, 4, channels)).astype(np.uint16)
    views = views.repeat(3, 2).repeat(4, 3)
    run = jax.jit(lambda views: photometric.augment(KEY, views, config, mean, std, pixels))
    result = np.asarray(run(views))
    assert result.dtype == np.float32
    changes = []
    for place, view in itertools.product(range(8), range(2)):
        key = jax.random.split(jax.random.fold_in(KEY, place), 2)[view]
        draws = jax.tree.map(np.asarray, draw(key, config, photometric._probabilities(config, 2)[view]))
        expected = (expected_view(unit(views[place, view], pixels), draws) - np.array(mean)) / np.array(std)
        # Values at the threshold of the inversion may fall to either side.
        assert np.mean(np.abs(result[place, view] - expected) > 1e-4) < 2e-3, draws
        changes.append((bool(draws.jitter), bool(draws.blur_radius > 0), bool(draws.solarize)))
    assert {(False,) * 3} < set(changes) and all(map(any, zip(*changes, strict=True)))
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    assert np.mean(np.abs(run(jax.device_put(views, sharding)) - result) > 1e-5) < 1e-3


@functools.cache
def disturbed(noise=0.0, noise_probability=0.6, drop=0.0, count=600):
    """Images `[count 256 5]` of zeros, that is of their mean, or of ones where channels are dropped."""
    config = PhotometricConfig(noise=noise, noise_probability=noise_probability, channel_drop_probability=drop)
    images = np.full((count, 16, 16, 5), drop > 0, np.float32)
    run = jax.jit(jax.vmap(functools.partial(operations.disturb, config=config, std=STD)))
    return np.asarray(run(jax.random.split(KEY, count), images)).reshape(count, 256, 5)


def test_noise_is_gaussian_of_a_drawn_strength_in_units_of_the_range():
    noise = disturbed(noise=0.3) * np.array(STD)
    deviations = noise.std(axis=1)
    noisy = deviations[:, 0] > 0
    assert stats.binomtest(int(noisy.sum()), len(noisy), 0.6).pvalue > 0.01
    assert (noise[~noisy] == 0).all()
    strength = noise[noisy].std(axis=(1, 2))
    assert stats.kstest(strength, stats.uniform(0, 0.3).cdf).pvalue > 0.01
    # The same for all channels, whatever their deviation.
    np.testing.assert_allclose(deviations[noisy] / strength[:, None], 1, atol=0.2)
    assert stats.kstest((noise[noisy] / strength[:, None, None]).ravel()[::37], stats.norm.cdf).pvalue > 0.01
    assert abs(np.corrcoef(noise[noisy].reshape(-1, 5).T) - np.eye(5)).max() < 0.02


def test_channels_are_dropped_to_their_mean_and_one_always_stays():
    images = disturbed(drop=0.3)
    dropped = (images == 0).all(axis=1)
    assert (images == ~dropped[:, None]).all()
    assert stats.binomtest(int(dropped.sum()), dropped.size, 0.3).pvalue > 0.01
    assert abs(np.corrcoef(dropped.T) - np.eye(5)).max() < 0.15
    # Of channels that would all be dropped, each stays as often as any other.
    stays = (disturbed(drop=1.0) == 1).all(axis=1)
    assert (stays.sum(1) == 1).all() and stats.chisquare(stays.sum(0)).pvalue > 0.01


def test_8_bit_rgb_is_disturbed_after_pillow_s_operations_and_else_untouched():
    rng = np.random.default_rng(3)
    views = rng.integers(0, 256, (8, 2, 12, 12, 3), dtype=np.uint8)
    config = PhotometricConfig()
    plain = np.asarray(augment(KEY, views, config))
    chances = photometric._probabilities(config, 2)

    def one(key, image, chance):
        stored = jnp.moveaxis(image, -1, 0).astype(jnp.float32)
        return normalize(jnp.moveaxis(photometric.apply_draws(stored, draw(key, config, chance)), 0, -1))

    keys = jax.vmap(lambda place: jax.random.split(jax.random.fold_in(KEY, place), 2))(jnp.arange(8))
    np.testing.assert_array_equal(plain, jax.jit(jax.vmap(jax.vmap(one), in_axes=(0, 0, None)))(keys, views, chances))
    assert "erf_inv" not in str(jax.make_jaxpr(lambda views: photometric.augment(KEY, views, config))(views))

    more = dataclasses.replace(config, noise=0.05, channel_drop_probability=0.2)
    result = np.asarray(augment(KEY, views, more))
    change, gone = result - plain, (result == 0).all(axis=(2, 3))
    assert gone.any() and not gone.all(-1).any()
    deviations = np.std(change, axis=(2, 3)) * np.array([0.229, 0.224, 0.225])
    assert 0 < np.ptp(deviations[~gone]) and deviations[~gone].max() < 0.06


def test_operations_that_the_channels_lack_are_all_named_with_their_flags():
    views = np.zeros((1, 2, 4, 4, 5), np.uint16)
    everything = (
        r"data.photometric.saturation=0.2, data.photometric.hue=0.1, data.photometric.grayscale_probability=0.2: "
        r"images of 5 channels have no saturation, no hue, no colors to drop; add "
        r"--config.data.photometric.saturation=0 --config.data.photometric.hue=0 "
        r"--config.data.photometric.grayscale_probability=0$"
    )
    for function in (photometric.augment, photometric.augment_local):
        with pytest.raises(ValueError, match=everything):
            function(KEY, views, PhotometricConfig(), MEAN, STD, FIVE)
    with pytest.raises(ValueError, match=r"channel_drop_probability=0.1: images of 1 channel have no channel to spare"):
        dataclasses.replace(ANY, channel_drop_probability=0.1).check_channels(1)
    dataclasses.replace(ANY, noise=0.1).check_channels(1)
    PhotometricConfig(channel_drop_probability=0.1).check_channels(3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"noise": -0.1}, "noise=-0.1: must be 0 or more"),
        ({"noise_probability": 1.5}, "noise_probability=1.5: a probability"),
        ({"channel_drop_probability": -0.5}, "channel_drop_probability=-0.5: a probability"),
    ],
)
def test_impossible_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        PhotometricConfig(**settings)
