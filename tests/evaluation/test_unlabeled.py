"""Scores without labels, against scikit-learn and NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.cluster import KMeans

from croc_jax.data.config import DataConfig, ViewsConfig
from croc_jax.data.photometric import normalize
from croc_jax.data.sources import FolderSource
from croc_jax.evaluation import unlabeled
from croc_jax.evaluation.kmeans import fit_kmeans
from croc_jax.evaluation.unlabeled import compactness, effective_rank, load_crops, make_unlabeled_scores, retrieve_views
from croc_jax.models import BackboneConfig, make_backbone
from croc_jax.pixel_format import PixelFormat

RNG = np.random.default_rng(0)


def test_retrieval_by_hand():
    # Seen from the first crops, image 2 finds image 0; from the second ones, all find theirs.
    tokens = np.array([[[1, 0], [2, 0]], [[0, 3], [0, 1]], [[1, 0.9], [0.1, -1]]], np.float32)
    cosines = np.array([[1, 0, 0.0995], [0, 1, -0.995], [0.743, 0.669, -0.595]])
    assert list(cosines.argmax(1)) == [0, 1, 0] and list(cosines.argmax(0)) == [0, 1, 0]
    assert retrieve_views(tokens) == pytest.approx(100 * 4 / 6)
    assert retrieve_views(np.ones((5, 2, 3), np.float32)) == 20.0


def test_compactness_is_the_explained_variance_of_k_means():
    centers = RNG.normal(size=(32, 12))
    tokens = (centers[RNG.permutation(640) % 32] + 0.02 * RNG.normal(size=(640, 12))).astype(np.float32)
    flat = tokens.astype(np.float64) / np.linalg.norm(tokens, axis=1, keepdims=True)
    # From where ours ends, theirs has nowhere to go.
    start = fit_kmeans(flat.astype(np.float32), 32, seed=0).centroids.astype(np.float64)
    inertia = KMeans(32, init=start, n_init=1).fit(flat).inertia_
    expected = 100 * (1 - inertia / (640 * flat.var(axis=0).sum()))
    assert compactness(tokens.reshape(40, 16, 12)) == pytest.approx(expected, abs=1e-3) and 90 < expected < 99.99
    # Length does not count, and what does not vary has no clusters.
    assert compactness((5 * tokens).reshape(40, 16, 12)) == pytest.approx(expected, abs=1e-3)
    assert compactness(np.ones((40, 16, 12), np.float32)) == 0.0


def test_effective_rank():
    tokens = RNG.normal(size=(50, 12)) * np.geomspace(1, 0.01, 12)
    shares = np.sqrt(np.linalg.eigvalsh(tokens.T @ tokens))
    shares /= shares.sum()
    assert effective_rank(tokens.astype(np.float32)) == pytest.approx(
        np.exp(-np.sum(shares * np.log(shares))), rel=1e-5
    )
    assert effective_rank(np.eye(7, dtype=np.float32)) == pytest.approx(7)
    assert effective_rank(np.ones((50, 12), np.float32)) == pytest.approx(1, abs=1e-6)
    assert effective_rank(np.zeros((50, 12), np.float32)) == 0.0


def test_crops_are_the_same_at_every_call_and_few_where_they_are_large(classes, monkeypatch):
    data, source = DataConfig(views=ViewsConfig(crop_size=8)), FolderSource(classes / "train")
    views = load_crops(source, data)
    assert views.shape == (36, 2, 8, 8, 3) and views.dtype == np.uint8 and views.std() > 10
    np.testing.assert_array_equal(load_crops(source, data), views)
    monkeypatch.setattr(unlabeled, "_MAX_BYTES", 5 * views[0].nbytes)
    np.testing.assert_array_equal(load_crops(source, data), views[:5])


def test_scores_are_of_the_features_of_any_kind_of_image():
    pixels = PixelFormat(channels=2, dtype="uint16", range=(100.0, 3000.0))
    config = BackboneConfig(
        variant="vit_tiny", width=12, depth=1, num_heads=2, patch_size=4, image_mean=(0.4, 0.5), image_std=(0.2, 0.3)
    )
    backbone = make_backbone(config, image_size=24, pixels=pixels)
    params = jax.jit(backbone.init)(jax.random.key(0), jnp.zeros((1, 24, 24, 2)))["params"]
    views = RNG.integers(0, 4000, (20, 2, 24, 24, 2), dtype=np.uint16)
    images = normalize(views.reshape(40, 24, 24, 2), (0.4, 0.5), (0.2, 0.3), pixels)
    features = jax.jit(backbone.apply)({"params": params}, images)
    cls, patches = np.asarray(features.cls), np.asarray(features.patches)
    # 16 of 36 patches, spread over the crop; the last batch of 32 is padded.
    places = [0, 2, 5, 7, 9, 12, 14, 16, 19, 21, 23, 26, 28, 30, 33, 35]
    expected = retrieve_views(cls.reshape(20, 2, -1)), compactness(patches[:, places]), effective_rank(cls)
    found = make_unlabeled_scores(backbone)(params, views)
    assert list(found) == ["unlabeled_retrieval", "unlabeled_compactness", "unlabeled_rank"]
    np.testing.assert_allclose(list(found.values()), expected, rtol=1e-4)
    with pytest.raises(ValueError, match="the features of training images are not finite"):
        make_unlabeled_scores(backbone)(jax.tree.map(lambda leaf: leaf * np.nan, params), views)
