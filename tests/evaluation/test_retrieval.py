"""Patches get the labels of their neighbors, as NumPy in float64 finds them."""

import numpy as np
import pytest
from scipy.special import softmax

from croc_jax.data.labeled.segmentation import open_segmentation
from croc_jax.evaluation.features import FrozenFeatures, MemoryBudget
from croc_jax.evaluation.retrieval import Memory, RetrievalConfig, build_memory, retrieve, soften_labels

CONFIG = RetrievalConfig(image_size=(24, 36), memory_size=300, num_neighbors=5)


def test_retrieve_equals_a_full_sort():
    rng = np.random.default_rng(0)
    tokens, queries = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in rng.standard_normal((2, 100, 8)))
    labels = rng.dirichlet(np.ones(4), 100)
    memory = Memory(tokens.astype(np.float32), labels.astype(np.float32))
    found = retrieve(queries[:20].astype(np.float32), memory, num_neighbors=9, temperature=0.1)
    similarity = queries[:20] @ tokens.T
    order = np.argsort(-similarity, axis=1)[:, :9]
    weights = softmax(np.take_along_axis(similarity, order, axis=1) / 0.1, axis=1)
    np.testing.assert_allclose(found, np.einsum("qn,qnk->qk", weights, labels[order]), atol=2e-6)


def test_labels_of_patches_are_shares_of_counted_pixels():
    ids = np.array([[0, 0, 2, 255], [0, 1, 255, 255], [255, 255, 1, 1], [255, 255, 1, 2]], np.uint8)
    expected = [[0.75, 0.25, 0], [0, 0, 1], [0, 0, 0], [0, 0.75, 0.25]]
    np.testing.assert_allclose(soften_labels(ids, (2, 2), num_classes=3), expected)


def test_every_image_gives_the_same_number_of_patches(folder, backbone, params):
    train = open_segmentation(folder, "train")
    features = FrozenFeatures(backbone, params, budget=MemoryBudget(batch_size=2))
    memory = build_memory(features, train, CONFIG)
    assert memory.tokens.shape == (9 * 33, 24) and memory.labels.shape == (9 * 33, 3)
    np.testing.assert_allclose(np.linalg.norm(memory.tokens, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(memory.labels.sum(axis=1), 1, rtol=1e-5)
    again = build_memory(FrozenFeatures(backbone, params, budget=MemoryBudget(batch_size=3)), train, CONFIG)
    np.testing.assert_array_equal(again.labels, memory.labels)
    with pytest.raises(ValueError, match="memory_size=8: less than one patch for each of 9 images"):
        build_memory(features, train, RetrievalConfig(image_size=(24, 36), memory_size=8))
    with pytest.raises(ValueError, match="num_neighbors=30: more than the 9 patches"):
        build_memory(features, train, RetrievalConfig(image_size=(24, 36), memory_size=9))
