"""K-means finds clusters as tight as scikit-learn's, however its tokens are cut up."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh
from sklearn.cluster import KMeans
from sklearn.datasets import make_blobs

from croc_jax.evaluation.kmeans import assign_clusters, fit_kmeans


@pytest.fixture(scope="module")
def tokens():
    points, _ = make_blobs(n_samples=3000, n_features=16, centers=12, cluster_std=2.5, random_state=0)  # pyright: ignore
    return points.astype(np.float32)


@pytest.mark.parametrize("num_clusters", [3, 25])
def test_inertia_is_that_of_scikit_learn(tokens, num_clusters):
    found = [fit_kmeans(tokens, num_clusters, seed=seed) for seed in range(3)]
    theirs = KMeans(num_clusters, n_init=3, random_state=0).fit(tokens)
    best = min(found, key=lambda fit: fit.inertia)
    assert best.inertia == pytest.approx(theirs.inertia_, rel=0.01)
    labels = assign_clusters(tokens, best.centroids)
    distances = ((tokens.astype(np.float64) - best.centroids[labels]) ** 2).sum()
    assert best.inertia == pytest.approx(distances, rel=1e-4)
    np.testing.assert_array_equal(labels, ((tokens[:, None] - best.centroids) ** 2).sum(-1).argmin(1))


def test_chunks_devices_and_runs_agree(tokens):
    whole = fit_kmeans(tokens, 12, seed=3)
    assert jax.device_count() == 8
    for other in (
        fit_kmeans(tokens, 12, seed=3),
        fit_kmeans(tokens, 12, seed=3, chunk=701),
        fit_kmeans(tokens, 12, seed=3, chunk=1001, mesh=Mesh(np.array(jax.devices()), ("data",))),
    ):
        assert other.iterations == whole.iterations
        np.testing.assert_allclose(other.centroids, whole.centroids, atol=1e-3)
    np.testing.assert_array_equal(
        assign_clusters(tokens, whole.centroids, chunk=999), assign_clusters(tokens, whole.centroids)
    )


def test_tokens_of_unit_length_are_clustered_as_if_they_came_so(tokens):
    units = tokens / np.linalg.norm(tokens, axis=1, keepdims=True)
    expected = fit_kmeans(units, 12, seed=3)
    fit = fit_kmeans(tokens, 12, unit_length=True, seed=3, chunk=999)
    np.testing.assert_allclose(fit.centroids, expected.centroids, atol=1e-4)
    assert fit.inertia == pytest.approx(expected.inertia, rel=1e-4)
    np.testing.assert_array_equal(
        assign_clusters(tokens, fit.centroids, unit_length=True), assign_clusters(units, fit.centroids)
    )


def test_no_cluster_stays_empty(monkeypatch):
    monkeypatch.setattr("croc_jax.evaluation.kmeans.START_TOKENS", 4)
    # Nine equal tokens and three others: most starts leave clusters without tokens.
    tokens = np.repeat(np.array([[0.0, 0], [5, 0], [0, 7], [9, 9]], np.float32), (9, 1, 1, 1), axis=0)
    fit = fit_kmeans(tokens, 4, seed=0, chunk=5)
    assert fit.inertia == pytest.approx(0, abs=1e-4)
    assert len(set(assign_clusters(tokens, fit.centroids).tolist())) == 4
    with pytest.raises(ValueError, match="num_clusters=5: more than the 3 tokens"):
        fit_kmeans(np.zeros((3, 2), np.float32), 5, seed=0)
