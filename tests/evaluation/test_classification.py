"""The linear classifier takes the steps of SGD in NumPy; ranks and accuracies equal scikit-learn's."""

import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from sklearn.metrics import top_k_accuracy_score

from croc_jax.evaluation.classification import ClassificationConfig, classifier_ranks, fit_classifier
from croc_jax.evaluation.features import ImageFeatures
from croc_jax.evaluation.metrics import class_accuracy, class_ranks, top_accuracy
from croc_jax.evaluation.probe import LinearHead

CLASSES = 6


def make_data(count=50, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count).astype(np.int32)
    centers = np.random.default_rng(0).standard_normal((CLASSES, 5))
    return ImageFeatures((3 + centers[labels] + rng.standard_normal((count, 5))).astype(np.float32), labels)


def reference_fit(data, config):
    """Returns kernel, bias and losses after SGD with momentum in float64."""
    features, targets = data.features.astype(float), np.eye(CLASSES)[data.labels]
    if config.normalization == "standardize":
        features = (features - features.mean(0)) / features.std(0)
    weights = [np.zeros((5, CLASSES)), np.zeros(CLASSES)]
    speeds, losses, size = [np.zeros_like(value) for value in weights], [], config.batch_size
    for epoch in range(config.epochs):
        lr = config.lr * size / 256 * (1 + np.cos(np.pi * epoch / config.epochs)) / 2
        order, epoch_losses = np.random.default_rng((config.seed, epoch)).permutation(len(features)), []
        for start in range(0, len(features) - size + 1, size):
            rows = order[start : start + size]
            logits = features[rows] @ weights[0] + weights[1]
            epoch_losses.append(-(log_softmax(logits, 1) * targets[rows]).sum(1).mean())
            error = (softmax(logits, 1) - targets[rows]) / size
            for index, gradient in enumerate((features[rows].T @ error, error.sum(0))):
                speeds[index] = 0.9 * speeds[index] + gradient + config.weight_decay * weights[index]
                weights[index] = weights[index] - lr * speeds[index]
        losses.append(np.mean(epoch_losses))
    return *weights, np.array(losses)


@pytest.mark.parametrize("normalization", ["none", "standardize"])
def test_fit_classifier_equals_sgd_in_numpy(normalization):
    data = make_data()
    config = ClassificationConfig(
        normalization=normalization, lr=2.0, weight_decay=0.01, epochs=4, batch_size=12, seed=3
    )
    head, losses = fit_classifier(data, config, num_classes=CLASSES)
    kernel, bias, expected_losses = reference_fit(data, config)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    features = data.features.astype(float)
    scaled = features if normalization == "none" else (features - features.mean(0)) / features.std(0)
    logits = features @ np.asarray(head.kernel, float) + np.asarray(head.bias, float)
    np.testing.assert_allclose(logits, scaled @ kernel + bias, atol=2e-4)


def test_ranks_and_accuracies_equal_scikit_learn(monkeypatch):
    monkeypatch.setattr("croc_jax.evaluation.classification.SCORED_AT_ONCE", 16)
    data, rng = make_data(43, 1), np.random.default_rng(2)
    head = LinearHead(rng.standard_normal((5, CLASSES)).astype(np.float32), rng.standard_normal(CLASSES))
    ranks, predicted = classifier_ranks(head, data)
    logits = data.features.astype(float) @ head.kernel + head.bias
    np.testing.assert_array_equal(predicted, logits.argmax(1))
    for top in (1, 2, 5):
        expected = top_k_accuracy_score(data.labels, logits, k=top, labels=range(CLASSES))
        assert top_accuracy(ranks, top) == pytest.approx(100 * expected, abs=1e-9)
    per_class = class_accuracy(ranks, data.labels, num_classes=CLASSES + 1)
    hits = logits.argmax(1) == data.labels
    np.testing.assert_allclose(per_class[:-1], [100 * hits[data.labels == k].mean() for k in range(CLASSES)])
    assert np.isnan(per_class[-1])


def test_equal_scores_go_to_the_lower_class():
    scores = np.array([[1.0, 2.0, 2.0], [0.0, 0.0, 0.0]], np.float32)
    np.testing.assert_array_equal(class_ranks(scores, np.array([2, 0])), [1, 0])
    np.testing.assert_array_equal(class_ranks(scores, np.array([1, 2])), [0, 2])
