"""Image features are pooled tokens of cropped images, in order, wherever they are stored."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from croc_jax.data.labeled.classes import open_class_folder
from croc_jax.evaluation.features import FrozenFeatures, MemoryBudget

MEAN, DEVIATION = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
SIZES = {"resize": 20, "image_size": 16}


@pytest.fixture
def split(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "train" / name).mkdir(parents=True)
        for index in range(3):
            pixels = rng.integers(0, 256, (24, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "train" / name / f"{index}.png")
    return open_class_folder(tmp_path, "train")


def test_vectors_are_pooled_tokens_in_order_whatever_the_batch_and_the_store(backbone, params, split, tmp_path):
    images = np.stack([split.load(index, **SIZES) for index in range(6)])
    tokens = jax.jit(backbone.apply)({"params": params}, jnp.asarray((images / 255 - MEAN) / DEVIATION, jnp.float32))
    mean = np.asarray(tokens.patches, float).mean(1)
    expected = {"cls": tokens.cls, "mean": mean, "cls_mean": np.concatenate([tokens.cls, mean], 1)}
    for budget in (MemoryBudget(batch_size=4), MemoryBudget(batch_size=1, host_gib=0)):
        for remember in (False, True):
            features = FrozenFeatures(backbone, params, budget=budget, folder=tmp_path, remember=remember)
            for pooling, values in expected.items():
                collected = features.collect_pooled(split, pooling=pooling, **SIZES)
                np.testing.assert_allclose(collected.features, values, atol=1e-5)
                np.testing.assert_array_equal(collected.labels, [0, 0, 0, 1, 1, 1])
                assert isinstance(collected.features, np.memmap) == (budget.host_gib == 0)


def test_what_is_remembered_is_not_encoded_again(backbone, params, split, monkeypatch):
    features = FrozenFeatures(backbone, params, remember=True)
    first = features.collect_pooled(split, pooling="cls", **SIZES)
    monkeypatch.setattr(features, "_pool_fn", None)
    both = features.collect_pooled(split, pooling="cls_mean", **SIZES)
    np.testing.assert_array_equal(both.features[:, :24], first.features)


def test_vectors_that_cannot_be_made_are_named(backbone, params, split):
    features = FrozenFeatures(backbone, params)
    with pytest.raises(ValueError, match="image_size=.18, 18.*patches of 4"):
        features.collect_pooled(split, pooling="cls", resize=20, image_size=18)
    with pytest.raises(ValueError, match="feature='max'"):
        features.collect_pooled(split, pooling="max", **SIZES)
