"""Features are the backbone's last patch tokens, image by image, wherever they are stored."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from croc_jax.data.labeled.segmentation import open_segmentation
from croc_jax.evaluation.features import FrozenFeatures, MemoryBudget, make_extract_fn

MEAN, DEVIATION = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
SIZES = {"image_size": (16, 24), "label_size": (8, 12)}


def test_tokens_are_those_of_normalized_images_on_their_grid(backbone, params):
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 24, 3), dtype=np.uint8)
    tokens = make_extract_fn(backbone)(params, images)
    normalized = jnp.asarray((images / 255 - MEAN) / DEVIATION, jnp.float32)
    expected = jax.jit(backbone.apply)({"params": params}, normalized).patches
    assert tokens.shape == (2, 4, 6, 24)
    np.testing.assert_allclose(tokens.reshape(2, 24, 24), expected, atol=1e-5)


def test_a_split_is_encoded_in_order_whatever_the_batch(backbone, params, folder):
    split = open_segmentation(folder, "train")
    extract = make_extract_fn(backbone, jnp.float16)
    whole = FrozenFeatures(backbone, params, budget=MemoryBudget(batch_size=9)).collect_tokens(split, **SIZES)
    parts = FrozenFeatures(backbone, params, budget=MemoryBudget(batch_size=4)).collect_tokens(split, **SIZES)
    assert whole.tokens.shape == (9, 4, 6, 24) and whole.tokens.dtype == np.float16
    assert whole.labels.shape == (9, 8, 12) and whole.labels.dtype == np.uint8
    np.testing.assert_allclose(parts.tokens.astype(float), whole.tokens.astype(float), atol=2e-3)
    np.testing.assert_array_equal(parts.labels, whole.labels)
    image, labels = split.load(7, **SIZES)
    np.testing.assert_allclose(whole.tokens[7].astype(float), extract(params, image[None])[0], atol=2e-3)
    np.testing.assert_array_equal(whole.labels[7], labels)


def test_features_beyond_the_budget_go_to_a_file_that_vanishes(backbone, params, folder, tmp_path):
    split = open_segmentation(folder, "val")
    inside = FrozenFeatures(backbone, params).collect_tokens(split, **SIZES)
    none = MemoryBudget(host_gib=0)
    for remember in (False, True):
        features = FrozenFeatures(backbone, params, budget=none, folder=tmp_path, remember=remember)
        outside = features.collect_tokens(split, **SIZES)
        assert isinstance(outside.tokens, np.memmap) and not isinstance(inside.tokens, np.memmap)
        np.testing.assert_array_equal(outside.tokens, inside.tokens)
    assert not list(tmp_path.iterdir())


def test_what_is_remembered_counts_against_the_budget_as_a_whole(backbone, params, folder):
    train, val = (open_segmentation(folder, name) for name in ("train", "val"))
    budget = MemoryBudget(host_gib=10 * 4 * 6 * 24 * 2 / 2**30)
    features = FrozenFeatures(backbone, params, budget=budget, remember=True)
    stores = [isinstance(features.collect_tokens(split, **SIZES).tokens, np.memmap) for split in (train, val)]
    assert stores == [False, True]


def test_the_extraction_compiles_once(backbone, params, folder):
    features = FrozenFeatures(backbone, params, budget=MemoryBudget(batch_size=4))
    for name in ("train", "val"):
        features.collect_tokens(open_segmentation(folder, name), **SIZES)
    assert features._extract_fn._cache_size() == 1


def test_what_is_remembered_is_not_encoded_again(backbone, params, folder, monkeypatch):
    split, budget = open_segmentation(folder, "train"), MemoryBudget(batch_size=4)
    fresh = FrozenFeatures(backbone, params, budget=budget)
    features = FrozenFeatures(backbone, params, budget=budget, remember=True)
    for _ in features.token_batches(split, image_size=(16, 24), label_size=None):
        break  # An incomplete pass is not taken for the whole.
    first = features.collect_tokens(split, **SIZES)
    monkeypatch.setattr(features, "_extract_fn", None)
    again = features.collect_tokens(split, image_size=(16, 24), label_size=(4, 6))
    np.testing.assert_array_equal(again.tokens, first.tokens)
    assert again.labels.shape == (9, 4, 6)
    found = features.token_batches(split, image_size=(16, 24), label_size=None)
    expected = fresh.token_batches(split, image_size=(16, 24), label_size=None)
    for one, other in zip(found, expected, strict=True):
        assert one.tokens.shape == (4, 4, 6, 24) and len(one.labels) == len(other.labels)
        np.testing.assert_array_equal(one.tokens[: len(one.labels)], other.tokens[: len(one.labels)])
        for mine, theirs in zip(one.labels, other.labels, strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_an_image_size_of_broken_patches_is_named(backbone, params, folder):
    features, split = FrozenFeatures(backbone, params), open_segmentation(folder, "train")
    with pytest.raises(ValueError, match=r"image_size=\(16, 23\).*patches of 4"):
        features.collect_tokens(split, image_size=(16, 23), label_size=(8, 12))
    with pytest.raises(ValueError, match="batch_size=0"):
        MemoryBudget(batch_size=0)
