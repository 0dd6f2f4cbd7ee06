"""Features are the backbone's last tokens, image by image, wherever they are stored."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from croc_jax.data.labeled.classes import open_class_folder
from croc_jax.data.labeled.segmentation import open_segmentation
from croc_jax.evaluation.features import FrozenFeatures, MemoryBudget, PoolingConfig, make_extract_fn

MEAN, DEVIATION = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
SIZES = {"image_size": (16, 24), "label_size": (8, 12)}


@pytest.fixture(scope="module")
def apply(backbone, params):
    """Returns the features of images of 0 to 255."""
    apply_fn = jax.jit(backbone.apply)
    return lambda images: apply_fn({"params": params}, jnp.asarray((images / 255 - MEAN) / DEVIATION, jnp.float32))


@pytest.fixture
def make_features(backbone, params, tmp_path):
    def make(remember=False, **budget):
        return FrozenFeatures(
            backbone, params, budget=MemoryBudget(**budget), folder=tmp_path / "files", remember=remember
        )

    (tmp_path / "files").mkdir()
    return make


def pooling(feature):
    return PoolingConfig(feature=feature, resize=20, image_size=16)


def test_tokens_are_those_of_normalized_images_on_their_grid(backbone, params, apply):
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 24, 3), dtype=np.uint8)
    tokens = make_extract_fn(backbone)(params, images)
    assert tokens.shape == (2, 4, 6, 24)
    np.testing.assert_allclose(tokens.reshape(2, 24, 24), apply(images).patches, atol=1e-5)


def test_collect_tokens_keeps_the_order_whatever_the_batch_and_the_store(make_features, folder, apply, tmp_path):
    split = open_segmentation(folder, "train")
    whole = make_features(batch_size=9).collect_tokens(split, **SIZES)
    assert whole.tokens.shape == (9, 4, 6, 24) and whole.tokens.dtype == np.float16
    assert whole.labels.shape == (9, 8, 12) and whole.labels.dtype == np.uint8
    image, labels = split.load(7, **SIZES)
    np.testing.assert_allclose(whole.tokens[7].reshape(24, 24), apply(image[None]).patches[0], atol=2e-3)
    np.testing.assert_array_equal(whole.labels[7], labels)
    for remember in (False, True):
        parts = make_features(remember, batch_size=4, host_gib=0).collect_tokens(split, **SIZES)
        assert isinstance(parts.tokens, np.memmap) and not isinstance(whole.tokens, np.memmap)
        np.testing.assert_allclose(parts.tokens.astype(float), whole.tokens.astype(float), atol=2e-3)
        np.testing.assert_array_equal(parts.labels, whole.labels)
    assert not list((tmp_path / "files").iterdir()), "files have no name"


def test_remembered_features_count_against_the_budget_as_a_whole(make_features, folder):
    features = make_features(remember=True, host_gib=10 * 4 * 6 * 24 * 2 / 2**30)
    splits = (open_segmentation(folder, name) for name in ("train", "val"))
    assert [isinstance(features.collect_tokens(split, **SIZES).tokens, np.memmap) for split in splits] == [False, True]


def test_remembered_features_are_not_encoded_again(make_features, folder, classes, monkeypatch):
    split, images = open_segmentation(folder, "train"), open_class_folder(classes, "val")
    features, sizes = make_features(remember=True, batch_size=4), {"image_size": (16, 24), "label_size": None}
    first, pooled = features.collect_tokens(split, **SIZES), features.collect_pooled(images, pooling("cls"))
    monkeypatch.setattr(features, "params", None)
    again = features.collect_tokens(split, image_size=(16, 24), label_size=(4, 6))
    np.testing.assert_array_equal(again.tokens, first.tokens)
    assert again.labels.shape == (9, 4, 6)
    np.testing.assert_array_equal(features.collect_pooled(images, pooling("cls")).features, pooled.features)
    fresh = make_features(batch_size=4).token_batches(split, **sizes)
    batches = zip(features.token_batches(split, **sizes), fresh, strict=True)
    for (tokens, labels), (expected, expected_labels) in batches:
        assert tokens.shape == (4, 4, 6, 24)
        np.testing.assert_array_equal(tokens[: len(labels)], expected[: len(labels)])
        for mine, theirs in zip(labels, expected_labels, strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_collect_pooled_pools_tokens_in_order_whatever_the_batch_and_the_store(make_features, classes, apply):
    split = open_class_folder(classes, "val")
    tokens = apply(np.stack([split.load(index, resize=20, image_size=16) for index in range(15)]))
    mean = np.asarray(tokens.patches, float).mean(1)
    expected = {"cls": tokens.cls, "mean": mean, "cls_mean": np.concatenate([tokens.cls, mean], 1)}
    for name, remember, budget in (("cls", False, {}), ("mean", True, {}), ("cls_mean", True, {"host_gib": 0})):
        collected = make_features(remember, batch_size=4, **budget).collect_pooled(split, pooling(name))
        np.testing.assert_allclose(collected.features, expected[name], atol=1e-5)
        np.testing.assert_array_equal(collected.labels, np.repeat([0, 1, 2], 5))
        assert isinstance(collected.features, np.memmap) == bool(budget)


def test_sizes_that_patches_do_not_tile_are_named(make_features, folder, classes):
    with pytest.raises(ValueError, match=r"image_size=\(16, 23\).*patches of 4"):
        make_features().collect_tokens(open_segmentation(folder, "val"), image_size=(16, 23), label_size=(8, 12))
    with pytest.raises(ValueError, match=r"image_size=\(18, 18\).*patches of 4"):
        config = PoolingConfig(resize=20, image_size=18)
        make_features().collect_pooled(open_class_folder(classes, "val"), config)
