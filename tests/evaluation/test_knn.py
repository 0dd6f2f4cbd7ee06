"""Neighbors and votes equal scikit-learn's, whatever the chunks."""

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from croc_jax.evaluation import knn
from croc_jax.evaluation.features import ImageFeatures
from croc_jax.evaluation.knn import KnnProtocol, knn_ranks, nearest_neighbors, vote

CLASSES = 7


def make_data(count, seed):
    """Returns features of many lengths around one direction a class."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count).astype(np.int32)
    centers = np.random.default_rng(0).standard_normal((CLASSES, 8))
    features = (centers[labels] + 1.5 * rng.standard_normal((count, 8))) * rng.uniform(0.1, 10, (count, 1))
    return ImageFeatures(features.astype(np.float32), labels)


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(knn, "QUERY_CHUNK", 16)
    monkeypatch.setattr(knn, "BANK_CHUNK", 40)


def reference_scores(bank, queries, count, temperature):
    """Returns the votes of scikit-learn's classifier, in float64."""
    model = KNeighborsClassifier(
        count, metric="cosine", algorithm="brute", weights=lambda distances: np.exp((1 - distances) / temperature)
    )
    model.fit(bank.features.astype(float), bank.labels)
    assert list(model.classes_) == list(range(CLASSES))
    return model.predict_proba(queries.features.astype(float))


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_ranks_equal_scikit_learn_s(small_chunks, temperature):
    bank, queries = make_data(150, 1), make_data(37, 2)
    counts = (1, 10, 20, 100)
    ranks = knn_ranks(bank, queries, neighbors=counts, temperature=temperature, num_classes=CLASSES)
    for count in counts:
        scores = reference_scores(bank, queries, count, temperature)
        true = scores[np.arange(37), queries.labels]
        expected = np.where(true > 0, (scores > true[:, None] * (1 + 1e-9)).sum(1), CLASSES)
        np.testing.assert_array_equal(ranks[count], expected)
    assert 0.3 < np.mean(ranks[20] == 0) < 1


def test_more_neighbors_than_images_are_all_images():
    bank, queries = make_data(30, 1), make_data(5, 2)
    ranks = knn_ranks(bank, queries, neighbors=(10, 100, 200), temperature=0.07, num_classes=CLASSES)
    assert list(ranks) == [10, 30]


def test_neighbors_are_the_nearest_by_angle(small_chunks):
    bank, queries = make_data(90, 1), make_data(20, 2)
    unit = [
        data.features / np.linalg.norm(data.features.astype(float), axis=1, keepdims=True) for data in (queries, bank)
    ]
    cosines = unit[0] @ unit[1].T
    order = np.argsort(-cosines, axis=1)[:, :12]
    found = list(nearest_neighbors(queries.features, bank, 12))
    assert len(found) == 2
    np.testing.assert_array_equal(np.concatenate([part.labels for part in found])[:20], bank.labels[order])
    similarities = np.concatenate([part.similarities for part in found])[:20]
    np.testing.assert_allclose(similarities, np.take_along_axis(cosines, order, 1), atol=1e-6)


def test_votes_by_hand():
    nearest = knn.Neighbors(jnp.array([[0.9, 0.8, 0.2]]), jnp.array([[2, 0, 2]]))
    expected = np.array([np.exp(-0.1 / 0.5), 0, 1 + np.exp(-0.7 / 0.5), 0])
    np.testing.assert_allclose(vote(nearest, 0.5, num_classes=4)[0], expected, rtol=1e-6)
    assert np.isfinite(vote(nearest, 1e-3, num_classes=4)).all()


def test_a_class_without_votes_is_never_found():
    features = np.eye(3, dtype=np.float32)
    bank = ImageFeatures(features, np.array([0, 0, 0], np.int32))
    queries = ImageFeatures(features, np.array([0, 1, 2], np.int32))
    ranks = knn_ranks(bank, queries, neighbors=(2,), temperature=0.07, num_classes=3)
    np.testing.assert_array_equal(ranks[2], [0, 3, 3])


@pytest.mark.parametrize(
    ("field", "value"),
    [("feature", "max"), ("image_size", 300), ("neighbors", ()), ("neighbors", (0,)), ("temperature", 0.0)],
)
def test_impossible_settings_are_named(field, value):
    with pytest.raises(ValueError, match=field):
        KnnProtocol(**{field: value})
