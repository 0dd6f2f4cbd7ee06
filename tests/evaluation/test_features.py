"""Features are the backbone's last patch tokens, image by image, wherever they are stored."""

import jax
import jax.numpy as jnp
import numpy as np

from croc_jax.data.labeled import open_segmentation
from croc_jax.evaluation.features import MemoryBudget, collect_tokens, make_extract_fn

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
    whole = collect_tokens(extract, params, split, **SIZES, budget=MemoryBudget(batch_size=9))
    parts = collect_tokens(extract, params, split, **SIZES, budget=MemoryBudget(batch_size=4))
    assert whole.tokens.shape == (9, 4, 6, 24) and whole.tokens.dtype == np.float16
    assert whole.labels.shape == (9, 8, 12) and whole.labels.dtype == np.uint8
    np.testing.assert_allclose(parts.tokens.astype(float), whole.tokens.astype(float), atol=2e-3)
    np.testing.assert_array_equal(parts.labels, whole.labels)
    image, labels = split.load(7, **SIZES)
    np.testing.assert_allclose(whole.tokens[7].astype(float), extract(params, image[None])[0], atol=2e-3)
    np.testing.assert_array_equal(whole.labels[7], labels)


def test_features_beyond_the_budget_go_to_a_file_that_vanishes(backbone, params, folder, tmp_path):
    split, extract = open_segmentation(folder, "val"), make_extract_fn(backbone, jnp.float16)
    inside = collect_tokens(extract, params, split, **SIZES, budget=MemoryBudget())
    outside = collect_tokens(extract, params, split, **SIZES, budget=MemoryBudget(host_gib=0), folder=tmp_path)
    assert isinstance(outside.tokens, np.memmap) and not isinstance(inside.tokens, np.memmap)
    np.testing.assert_array_equal(outside.tokens, inside.tokens)
    assert not list(tmp_path.iterdir())


def test_the_extraction_compiles_once(backbone, params, folder):
    extract = make_extract_fn(backbone, jnp.float16)
    for name in ("train", "val"):
        collect_tokens(extract, params, open_segmentation(folder, name), **SIZES, budget=MemoryBudget(batch_size=4))
    assert extract._cache_size() == 1
