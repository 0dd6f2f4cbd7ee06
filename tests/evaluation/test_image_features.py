"""Image features are pooled tokens of cropped images, in order, wherever they are stored."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from croc_jax.data.labeled_images import open_class_folder
from croc_jax.evaluation.features import MemoryBudget
from croc_jax.evaluation.image_features import collect_features, make_pool_fn

MEAN, DEVIATION = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
SIZES = {"resize": 20, "image_size": 16}


def test_pooled_features_are_those_of_the_last_tokens(backbone, params):
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    tokens = jax.jit(backbone.apply)({"params": params}, jnp.asarray((images / 255 - MEAN) / DEVIATION, jnp.float32))
    mean = np.asarray(tokens.patches, float).mean(1)
    expected = {"cls": tokens.cls, "mean": mean, "cls_mean": np.concatenate([tokens.cls, mean], 1)}
    for feature, values in expected.items():
        np.testing.assert_allclose(make_pool_fn(backbone, feature, image_size=16)(params, images), values, atol=1e-5)
    with pytest.raises(ValueError, match="feature='max'"):
        make_pool_fn(backbone, "max", image_size=16)


@pytest.fixture
def split(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "train" / name).mkdir(parents=True)
        for index in range(3):
            pixels = rng.integers(0, 256, (24, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "train" / name / f"{index}.png")
    return open_class_folder(tmp_path, "train")


def test_a_split_is_encoded_in_order_whatever_the_batch_and_the_store(backbone, params, split, tmp_path):
    pool = make_pool_fn(backbone, "cls", image_size=16)
    expected = np.concatenate([pool(params, split.load(index, **SIZES)[None]) for index in range(6)])
    for budget in (MemoryBudget(batch_size=4), MemoryBudget(batch_size=1, host_gib=0)):
        collected = collect_features(pool, params, split, **SIZES, budget=budget, folder=tmp_path)
        np.testing.assert_allclose(collected.features, expected, atol=1e-5)
        np.testing.assert_array_equal(collected.labels, [0, 0, 0, 1, 1, 1])
        assert isinstance(collected.features, np.memmap) == (budget.host_gib == 0)
    assert pool._cache_size() == 2


def test_a_crop_that_patches_do_not_tile_is_named(backbone):
    with pytest.raises(ValueError, match="image_size=18"):
        make_pool_fn(backbone, "cls", image_size=18)
