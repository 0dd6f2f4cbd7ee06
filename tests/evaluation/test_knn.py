"""Neighbors and votes equal scikit-learn's, whatever the chunks."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

from croc_jax.evaluation import knn, search
from croc_jax.evaluation.features import ImageFeatures
from croc_jax.evaluation.knn import KnnConfig, knn_ranks, vote
from croc_jax.evaluation.search import nearest_neighbors, search_host

CLASSES = 7


def make_data(count, seed):
    """Returns features of many lengths around one direction a class."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count).astype(np.int32)
    centers = np.random.default_rng(0).standard_normal((CLASSES, 8))
    features = (centers[labels] + 1.5 * rng.standard_normal((count, 8))) * rng.uniform(0.1, 10, (count, 1))
    return ImageFeatures(features.astype(np.float32), labels)


@pytest.fixture(params=[(16, 40), (1000, 64), (5, 7)])
def chunks(monkeypatch, request):
    monkeypatch.setattr(search, "QUERY_CHUNK", request.param[0])
    monkeypatch.setattr(knn, "QUERY_CHUNK", request.param[0])
    monkeypatch.setattr(search, "BANK_CHUNK", request.param[1])
    nearest_neighbors.clear_cache()
    yield
    nearest_neighbors.clear_cache()


def test_search_equals_scikit_learn(chunks):
    bank, queries = make_data(90, 1).features, make_data(20, 2).features
    model = NearestNeighbors(n_neighbors=12, metric="cosine", algorithm="brute").fit(bank.astype(float))
    distances, expected = model.kneighbors(queries.astype(float))
    # Of the bank, 64 rows at most are on the device at a time.
    for device_gib in (1.0, 64 * bank[0].nbytes / 2**30):
        similarities, indices = search_host((queries,), (bank,), count=12, device_gib=device_gib)
        np.testing.assert_array_equal(indices, expected)
        np.testing.assert_allclose(similarities, 1 - distances, atol=1e-6)
    units = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries, bank)]
    np.testing.assert_array_equal(nearest_neighbors(*units, count=12).indices, expected)


def test_of_equal_neighbors_the_lower_row_comes_first(chunks):
    bank = np.repeat(np.eye(3, dtype=np.float32), 30, axis=0)
    found = search_host((np.eye(3, dtype=np.float32),), (bank,), count=32, device_gib=0)
    np.testing.assert_array_equal(found.indices[:, :30], np.arange(90).reshape(3, 30))


def reference_scores(bank, queries, count, temperature):
    """Returns the votes of scikit-learn's classifier, in float64."""
    model = KNeighborsClassifier(
        count, metric="cosine", algorithm="brute", weights=lambda distances: np.exp((1 - distances) / temperature)
    )
    model.fit(bank.features.astype(float), bank.labels)
    return model.predict_proba(queries.features.astype(float))


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_ranks_equal_scikit_learn(temperature):
    bank, queries = make_data(150, 1), make_data(37, 2)
    counts = (1, 10, 20, 100)
    config = KnnConfig(neighbors=(*counts, 200), temperature=temperature)
    ranks = knn_ranks(bank, queries, config, num_classes=CLASSES)
    assert list(ranks) == [*counts, 150], "more neighbors than images are all images"
    for count in counts:
        scores = reference_scores(bank, queries, count, temperature)
        true = scores[np.arange(37), queries.labels]
        expected = np.where(true > 0, (scores > true[:, None] * (1 + 1e-9)).sum(1), CLASSES)
        np.testing.assert_array_equal(ranks[count].true, expected)
        np.testing.assert_array_equal(ranks[count].predicted, scores.argmax(1))
    assert 0.3 < np.mean(ranks[20].true == 0) < 1


def test_vote_sums_weights_of_each_class():
    similarities, labels = jnp.array([[0.9, 0.8, 0.2]]), jnp.array([[2, 0, 2]])
    shares = softmax(np.array([0.9, 0.8, 0.2]) / 0.5)
    found = np.asarray(vote(similarities, labels, 0.5, num_classes=4)[0])
    np.testing.assert_allclose(found / found.sum(), [shares[1], 0, shares[0] + shares[2], 0], rtol=1e-6)
    assert np.isfinite(vote(similarities, labels, 1e-3, num_classes=4)).all()


def test_a_class_without_votes_is_never_found():
    features = np.eye(3, dtype=np.float32)
    bank = ImageFeatures(features, np.array([0, 0, 0], np.int32))
    queries = ImageFeatures(features, np.array([0, 1, 2], np.int32))
    ranks = knn_ranks(bank, queries, KnnConfig(neighbors=(2,)), num_classes=3)
    np.testing.assert_array_equal(ranks[2].true, [0, 3, 3])
