"""Operations equal Pillow's on any image; draws follow torchvision's laws."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from scipy import stats

from croc_jax.data import photometric, photometric_draws
from croc_jax.data.config import PhotometricConfig

NOTHING = PhotometricConfig(
    jitter_probability=0.0,
    grayscale_probability=0.0,
    blur_probability=(0.0, 0.0),
    solarize_probability=(0.0, 0.0),
)
KEY = jax.random.key(0)


def _pillow_hue(image, shift):
    hue, saturation, value = image.convert("HSV").split()
    turned = (np.asarray(hue).astype(int) + int(shift * 255)) % 256
    return Image.merge("HSV", (Image.fromarray(turned.astype(np.uint8)), saturation, value)).convert("RGB")


PILLOW = {
    "adjust_brightness": lambda image, factor: ImageEnhance.Brightness(image).enhance(factor),
    "adjust_contrast": lambda image, factor: ImageEnhance.Contrast(image).enhance(factor),
    "adjust_saturation": lambda image, factor: ImageEnhance.Color(image).enhance(factor),
    "adjust_hue": _pillow_hue,
    "gaussian_blur": lambda image, radius: image.filter(ImageFilter.GaussianBlur(radius)),
    "to_grayscale": lambda image: image.convert("L").convert("RGB"),
    "solarize": lambda image: ImageOps.solarize(image, 128),
}
# Not round: where a result is a whole number, the last bit of a product decides its rounding.
VALUES = {
    "adjust_brightness": (0.0, 0.6137, 1.0, 1.3719, 2.0),
    "adjust_contrast": (0.0, 0.6113, 1.0, 1.4171, 3.0),
    "adjust_saturation": (0.0, 0.8191, 1.0, 1.2113, 2.5),
    "adjust_hue": (-0.5, -0.1, -0.003, 0.0, 0.004, 0.1, 0.31, 0.5),
    "gaussian_blur": (0.0, 0.1173, 0.4371, 0.7719, 1.3137, 1.9913),
}


def _images():
    """Noise, blocks with noise, a gradient, and extremes; not square, so that axes count."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (40, 56, 3))
    blocks = rng.integers(0, 256, (5, 7, 3)).repeat(8, 0).repeat(8, 1) + rng.integers(-15, 16, (40, 56, 3))
    y, x = np.mgrid[:40, :56]
    gradient = np.stack([6 * y, 4 * x, 255 - 2 * (x + y)], axis=-1)
    extremes = rng.integers(0, 2, (40, 56, 3)) * 255
    return [np.clip(image, 0, 255).astype(np.uint8) for image in (noise, blocks, gradient, extremes)]


def _planes(image):
    return jnp.asarray(np.moveaxis(image, -1, 0), jnp.float32)


def _pixels(planes):
    return np.moveaxis(np.asarray(planes), 0, -1)


@pytest.mark.parametrize("name", VALUES)
def test_operation_equals_pillow(name):
    images, operation = _images(), jax.jit(getattr(photometric, name))
    for image, value in itertools.product(images, VALUES[name]):
        result = _pixels(operation(_planes(image), jnp.float32(value)))
        error = np.abs(result - np.asarray(PILLOW[name](Image.fromarray(image), value)))
        assert error.max() <= 1 and error.mean() < 0.01, value


@pytest.mark.parametrize("name", ["to_grayscale", "solarize"])
def test_operation_without_parameter_equals_pillow(name):
    for image in _images():
        result = _pixels(getattr(photometric, name)(_planes(image)))
        np.testing.assert_array_equal(result, np.asarray(PILLOW[name](Image.fromarray(image))))


def test_hue_equals_pillow_for_every_chroma_and_sector():
    # With the smallest value at 0, hue depends on the order of the planes, on the largest and
    # on the middle value only: these are all the hues that there are.
    largest, middle = np.mgrid[:256, :256]
    ramp = np.stack([largest, np.minimum(middle, largest), np.zeros_like(largest)])
    colors = np.concatenate([ramp[list(order)] for order in itertools.permutations(range(3))], axis=1)
    image = np.moveaxis(colors, 0, -1).astype(np.uint8)
    turn = jax.jit(photometric.adjust_hue)
    for shift in (0.0, 0.07, -0.2):
        expected = np.asarray(_pillow_hue(Image.fromarray(image), shift))
        np.testing.assert_array_equal(_pixels(turn(_planes(image), jnp.float32(shift))), expected)


def test_long_blur_needs_and_takes_a_longer_kernel():
    image = _images()[1]
    result = photometric.gaussian_blur(_planes(image), jnp.float32(5.3), max_radius=6.0)
    expected = np.asarray(PILLOW["gaussian_blur"](Image.fromarray(image), 5.3))
    assert np.abs(_pixels(result) - expected).max() <= 1


def test_jitter_applies_the_operations_in_every_order():
    image, names = _images()[1], ["adjust_brightness", "adjust_contrast", "adjust_saturation", "adjust_hue"]
    factors = (1.3137, 0.7131, 1.6171, 0.09)
    jitter = jax.jit(photometric.jitter)
    for order in itertools.permutations(range(4)):
        expected = Image.fromarray(image)
        for i in order:
            expected = PILLOW[names[i]](expected, factors[i])
        result = jitter(_planes(image), jnp.array(factors), jnp.argsort(jnp.array(order)))
        # One byte in a thousand may fall otherwise, and then differ more after a turn of the hue.
        error = np.abs(_pixels(result) - np.asarray(expected))
        assert np.mean(error > 0) < 1e-3 and error.max() <= 6, order


def test_steps_come_in_the_official_order():
    image = _images()[0]
    draws = photometric.Draws(
        jitter=jnp.array(True),
        factors=jnp.array([1.2137, 0.9171, 1.1319, -0.05]),
        ranks=jnp.array([2, 0, 3, 1]),
        grayscale=jnp.array(True),
        blur_radius=jnp.array(1.1),
        solarize=jnp.array(True),
    )
    expected = Image.fromarray(image)
    for name, value in (("contrast", 0.9171), ("hue", -0.05), ("brightness", 1.2137), ("saturation", 1.1319)):
        expected = PILLOW[f"adjust_{name}"](expected, value)
    expected = PILLOW["gaussian_blur"](PILLOW["to_grayscale"](expected), 1.1)
    expected = np.asarray(PILLOW["solarize"](expected)).astype(int)
    result = _pixels(jax.jit(photometric.apply_draws)(_planes(image), draws))
    assert np.mean(np.abs(result - expected) <= 1) > 0.999


def _draws(config, probability, count=4000):
    keys = jax.random.split(jax.random.key(7), count)
    many = jax.jit(jax.vmap(lambda key: photometric.draw(key, config, jnp.array(probability))))
    return jax.tree.map(np.asarray, many(keys))


def test_draws_follow_the_laws():
    draws = _draws(PhotometricConfig(brightness=0.4, contrast=1.5, saturation=0.2, hue=0.1), (0.8, 0.2, 0.5, 0.3))
    ranges = [(0.6, 1.4), (0.0, 2.5), (0.8, 1.2), (-0.1, 0.1)]
    for column, (low, high) in enumerate(ranges):
        assert stats.kstest(draws.factors[:, column], stats.uniform(low, high - low).cdf).pvalue > 0.01
    assert abs(np.corrcoef(draws.factors.T) - np.eye(4)).max() < 0.06
    for happened, probability in ((draws.jitter, 0.8), (draws.grayscale, 0.2), (draws.solarize, 0.3)):
        assert stats.binomtest(int(happened.sum()), len(happened), probability).pvalue > 0.01
    blurred = draws.blur_radius > 0
    assert stats.binomtest(int(blurred.sum()), len(blurred), 0.5).pvalue > 0.01
    assert stats.kstest(draws.blur_radius[blurred], stats.uniform(0.1, 1.9).cdf).pvalue > 0.01


def test_orders_are_uniform_permutations():
    ranks = _draws(PhotometricConfig(), (1.0, 0.0, 0.0, 0.0)).ranks
    orders, counts = np.unique(ranks, axis=0, return_counts=True)
    assert {tuple(order) for order in orders} == set(itertools.permutations(range(4)))
    assert stats.chisquare(counts).pvalue > 0.01


def test_equal_numbers_still_make_a_permutation():
    assert sorted(np.asarray(photometric_draws.rank(jnp.array([0.5, 0.2, 0.5, 0.5])))) == [0, 1, 2, 3]


def _batch(batch=6, size=24):
    rng = np.random.default_rng(1)
    return rng.integers(0, 256, (batch, 2, size, size, 3), dtype=np.uint8)


augment = jax.jit(photometric.augment, static_argnums=2)


def test_without_chances_only_normalization_is_left():
    views = _batch()
    result = augment(KEY, views, NOTHING)
    expected = (views / 255.0 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, expected, rtol=0, atol=2e-6)


def test_probabilities_belong_to_their_view():
    config = PhotometricConfig(
        jitter_probability=0.0,
        grayscale_probability=0.0,
        blur_probability=(1.0, 0.0),
        solarize_probability=(0.0, 1.0),
    )
    views = _batch()
    result = np.asarray(augment(KEY, views, config))
    inverted = np.where(views[:, 1] >= 128, 255 - views[:, 1].astype(int), views[:, 1])
    np.testing.assert_allclose(result[:, 1], photometric.normalize(jnp.asarray(inverted)), rtol=0, atol=2e-6)
    spread = result[:, 0].std(axis=(1, 2)) / np.asarray(photometric.normalize(jnp.asarray(views[:, 0]))).std(
        axis=(1, 2)
    )
    assert spread.max() < 1 and spread.min() < 0.5


def test_an_image_draws_by_key_and_place_alone():
    views = _batch()
    whole = np.asarray(augment(KEY, views, PhotometricConfig()))
    np.testing.assert_array_equal(augment(KEY, views[:2], PhotometricConfig()), whole[:2])
    np.testing.assert_array_equal(augment(KEY, views, PhotometricConfig()), whole)
    others = np.concatenate([views[:1], 255 - views[1:]])
    np.testing.assert_array_equal(augment(KEY, others, PhotometricConfig())[0], whole[0])


def test_keys_places_and_views_draw_differently():
    same = np.broadcast_to(_batch(1)[:, :1], (6, 2, 24, 24, 3))
    config = PhotometricConfig(jitter_probability=1.0, blur_probability=(1.0, 1.0), solarize_probability=(0.0, 0.0))
    result = np.asarray(augment(KEY, same, config)).reshape(12, -1)
    assert len(np.unique(result, axis=0)) == 12
    assert not np.array_equal(np.asarray(augment(jax.random.key(1), same, config)).reshape(12, -1), result)


def test_sharding_the_batch_changes_nothing():
    devices = jax.devices()
    sharding = jax.sharding.NamedSharding(
        jax.sharding.Mesh(np.array(devices), ("data",)), jax.sharding.PartitionSpec("data")
    )
    views = _batch(batch=2 * len(devices))
    sharded = augment(KEY, jax.device_put(views, sharding), PhotometricConfig())
    np.testing.assert_array_equal(sharded, augment(KEY, views, PhotometricConfig()))


def test_no_image_is_gathered_or_scattered():
    text = augment.lower(KEY, _batch(), PhotometricConfig()).as_text()
    assert "stablehlo.floor" in text
    assert "gather" not in text and "scatter" not in text and "dynamic_slice" not in text


def test_missing_view_probabilities_are_named():
    with pytest.raises(ValueError, match=r"data.photometric.blur_probability=\(1.0, 0.1\).* 1 views"):
        photometric.augment(KEY, jnp.asarray(_batch()[:, :1]), PhotometricConfig())


def test_impossible_settings_are_named():
    for settings, message in (
        ({"contrast": -0.1}, r"contrast=-0.1: must be"),
        ({"hue": 0.6}, r"hue=0.6: turns"),
        ({"blur_radius": (2.0, 0.1)}, r"blur_radius=\(2.0, 0.1\): give the smaller"),
        ({"jitter_probability": 80.0}, r"jitter_probability=80.0: a probability"),
        ({"solarize_probability": (0.0, -0.2)}, r"solarize_probability=-0.2: a probability"),
    ):
        with pytest.raises(ValueError, match=message):
            PhotometricConfig(**settings)
