"""Features are the backbone's last tokens, image by image, wherever they are stored."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from croc_jax.data.labeled.classes import open_class_folder
from croc_jax.data.labeled.segmentation import open_segmentation
from croc_jax.evaluation.features import FrozenFeatures, MemoryBudget, make_extract_fn

MEAN, DEVIATION = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
SIZES = {"image_size": (16, 24), "label_size": (8, 12)}
CROP = {"resize": 20, "image_size": 16}


def test_tokens_are_those_of_normalized_images_on_their_grid(backbone, params):
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 24, 3), dtype=np.uint8)
    tokens = make_extract_fn(backbone)(params, images)
    normalized = jnp.asarray((images / 255 - MEAN) / DEVIATION, jnp.float32)
    expected = jax.jit(backbone.apply)({"params": params}, normalized).patches
    assert tokens.shape == (2, 4, 6, 24)
    np.testing.assert_allclose(tokens.reshape(2, 24, 24), expected, atol=1e-5)


def test_collect_tokens_keeps_the_order_whatever_the_batch(backbone, params, folder):
    split = open_segmentation(folder, "train")
    whole = FrozenFeatures(backbone, params, budget=MemoryBudget(batch_size=9)).collect_tokens(split, **SIZES)
    parts = FrozenFeatures(backbone, params, budget=MemoryBudget(batch_size=4)).collect_tokens(split, **SIZES)
    assert whole.tokens.shape == (9, 4, 6, 24) and whole.tokens.dtype == np.float16
    assert whole.labels.shape == (9, 8, 12) and whole.labels.dtype == np.uint8
    np.testing.assert_allclose(parts.tokens.astype(float), whole.tokens.astype(float), atol=2e-3)
    np.testing.assert_array_equal(parts.labels, whole.labels)
    image, labels = split.load(7, **SIZES)
    expected = make_extract_fn(backbone, jnp.float16)(params, image[None])[0]
    np.testing.assert_allclose(whole.tokens[7].astype(float), expected, atol=2e-3)
    np.testing.assert_array_equal(whole.labels[7], labels)


def test_features_beyond_the_budget_go_to_a_file_that_vanishes(backbone, params, folder, tmp_path):
    split = open_segmentation(folder, "val")
    inside = FrozenFeatures(backbone, params).collect_tokens(split, **SIZES)
    for remember in (False, True):
        budget = MemoryBudget(host_gib=0)
        features = FrozenFeatures(backbone, params, budget=budget, folder=tmp_path, remember=remember)
        outside = features.collect_tokens(split, **SIZES)
        assert isinstance(outside.tokens, np.memmap) and not isinstance(inside.tokens, np.memmap)
        np.testing.assert_array_equal(outside.tokens, inside.tokens)
    assert not list(tmp_path.iterdir())


def test_what_is_remembered_counts_against_the_budget_as_a_whole(backbone, params, folder):
    budget = MemoryBudget(host_gib=10 * 4 * 6 * 24 * 2 / 2**30)
    features = FrozenFeatures(backbone, params, budget=budget, remember=True)
    splits = (open_segmentation(folder, name) for name in ("train", "val"))
    assert [isinstance(features.collect_tokens(split, **SIZES).tokens, np.memmap) for split in splits] == [False, True]


def test_what_is_remembered_is_not_encoded_again(backbone, params, folder, classes, monkeypatch):
    split, budget = open_segmentation(folder, "train"), MemoryBudget(batch_size=4)
    fresh = FrozenFeatures(backbone, params, budget=budget)
    features = FrozenFeatures(backbone, params, budget=budget, remember=True)
    first = features.collect_tokens(split, **SIZES)
    pooled = features.collect_pooled(open_class_folder(classes, "val"), pooling="cls", **CROP)
    monkeypatch.setattr(features, "params", None)
    again = features.collect_tokens(split, image_size=(16, 24), label_size=(4, 6))
    np.testing.assert_array_equal(again.tokens, first.tokens)
    assert again.labels.shape == (9, 4, 6)
    both = features.collect_pooled(open_class_folder(classes, "val"), pooling="cls_mean", **CROP)
    np.testing.assert_array_equal(both.features[:, :24], pooled.features)
    found = features.token_batches(split, image_size=(16, 24), label_size=None)
    expected = fresh.token_batches(split, image_size=(16, 24), label_size=None)
    for one, other in zip(found, expected, strict=True):
        assert one.tokens.shape == (4, 4, 6, 24) and len(one.labels) == len(other.labels)
        np.testing.assert_array_equal(one.tokens[: len(one.labels)], other.tokens[: len(one.labels)])
        for mine, theirs in zip(one.labels, other.labels, strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_collect_pooled_pools_tokens_in_order_whatever_the_batch_and_the_store(backbone, params, classes, tmp_path):
    split = open_class_folder(classes, "val")
    images = np.stack([split.load(index, **CROP) for index in range(15)])
    tokens = jax.jit(backbone.apply)({"params": params}, jnp.asarray((images / 255 - MEAN) / DEVIATION, jnp.float32))
    mean = np.asarray(tokens.patches, float).mean(1)
    expected = {"cls": tokens.cls, "mean": mean, "cls_mean": np.concatenate([tokens.cls, mean], 1)}
    for budget in (MemoryBudget(batch_size=4), MemoryBudget(batch_size=1, host_gib=0)):
        for remember in (False, True):
            features = FrozenFeatures(backbone, params, budget=budget, folder=tmp_path, remember=remember)
            for pooling, values in expected.items():
                collected = features.collect_pooled(split, pooling=pooling, **CROP)
                np.testing.assert_allclose(collected.features, values, atol=1e-5)
                np.testing.assert_array_equal(collected.labels, np.repeat([0, 1, 2], 5))
                assert isinstance(collected.features, np.memmap) == (budget.host_gib == 0)


def test_impossible_sizes_and_poolings_are_named(backbone, params, folder, classes):
    features, split = FrozenFeatures(backbone, params), open_class_folder(classes, "val")
    with pytest.raises(ValueError, match=r"image_size=\(16, 23\).*patches of 4"):
        features.collect_tokens(open_segmentation(folder, "val"), image_size=(16, 23), label_size=(8, 12))
    with pytest.raises(ValueError, match=r"image_size=\(18, 18\).*patches of 4"):
        features.collect_pooled(split, pooling="cls", resize=20, image_size=18)
    with pytest.raises(ValueError, match="feature='max'"):
        features.collect_pooled(split, pooling="max", **CROP)
    with pytest.raises(ValueError, match="batch_size=0"):
        MemoryBudget(batch_size=0)
