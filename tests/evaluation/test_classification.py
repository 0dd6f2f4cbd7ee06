"""The linear classifier takes the steps of SGD in NumPy, and ranks its logits as NumPy does."""

import numpy as np
import pytest
from PIL import Image
from scipy.special import log_softmax, softmax
from sklearn.metrics import top_k_accuracy_score

from croc_jax.data.labeled.classes import open_class_folder
from croc_jax.evaluation.accuracy import class_accuracy, class_ranks, top_accuracy
from croc_jax.evaluation.classification import (
    ClassificationProtocol,
    classifier_ranks,
    evaluate_classification,
    fit_classifier,
)
from croc_jax.evaluation.features import FrozenFeatures, ImageFeatures, MemoryBudget
from croc_jax.evaluation.knn import KnnProtocol, evaluate_knn
from croc_jax.evaluation.linear import LinearHead

CLASSES = 6


def make_data(count=50, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count).astype(np.int32)
    centers = np.random.default_rng(0).standard_normal((CLASSES, 5))
    return ImageFeatures((3 + centers[labels] + rng.standard_normal((count, 5))).astype(np.float32), labels)


def reference_fit(data, protocol):
    """Returns kernel, bias and losses after SGD with momentum in float64."""
    features, targets = data.features.astype(float), np.eye(CLASSES)[data.labels]
    if protocol.normalization == "standardize":
        features = (features - features.mean(0)) / features.std(0)
    weights = [np.zeros((5, CLASSES)), np.zeros(CLASSES)]
    speeds, losses, size = [np.zeros_like(value) for value in weights], [], protocol.batch_size
    for epoch in range(protocol.epochs):
        lr = protocol.lr * size / 256 * (1 + np.cos(np.pi * epoch / protocol.epochs)) / 2
        order, epoch_losses = np.random.default_rng((protocol.seed, epoch)).permutation(len(features)), []
        for start in range(0, len(features) - size + 1, size):
            rows = order[start : start + size]
            logits = features[rows] @ weights[0] + weights[1]
            epoch_losses.append(-(log_softmax(logits, 1) * targets[rows]).sum(1).mean())
            error = (softmax(logits, 1) - targets[rows]) / size
            for index, gradient in enumerate((features[rows].T @ error, error.sum(0))):
                speeds[index] = 0.9 * speeds[index] + gradient + protocol.weight_decay * weights[index]
                weights[index] = weights[index] - lr * speeds[index]
        losses.append(np.mean(epoch_losses))
    return *weights, np.array(losses)


@pytest.mark.parametrize("normalization", ["none", "standardize"])
def test_training_equals_sgd_in_numpy(normalization):
    data = make_data()
    protocol = ClassificationProtocol(
        normalization=normalization, lr=2.0, weight_decay=0.01, epochs=4, batch_size=12, seed=3
    )
    head, losses = fit_classifier(data, protocol, num_classes=CLASSES)
    kernel, bias, expected_losses = reference_fit(data, protocol)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    features = data.features.astype(float)
    scaled = features if normalization == "none" else (features - features.mean(0)) / features.std(0)
    logits = features @ np.asarray(head.kernel, float) + np.asarray(head.bias, float)
    np.testing.assert_allclose(logits, scaled @ kernel + bias, atol=2e-4)


def test_the_device_s_share_changes_nothing():
    data, protocol = make_data(), ClassificationProtocol(lr=1.0, epochs=3, batch_size=8)
    whole, _ = fit_classifier(data, protocol, num_classes=CLASSES)
    pieces, _ = fit_classifier(data, protocol, num_classes=CLASSES, device_gib=8 * 20 * 2 * 2.5 / 2**30)
    np.testing.assert_allclose(pieces.kernel, whole.kernel, rtol=1e-5, atol=1e-6)


def test_ranks_and_accuracies_equal_scikit_learn_s(monkeypatch):
    monkeypatch.setattr("croc_jax.evaluation.classification.SCORED_AT_ONCE", 16)
    data, rng = make_data(43, 1), np.random.default_rng(2)
    head = LinearHead(rng.standard_normal((5, CLASSES)).astype(np.float32), rng.standard_normal(CLASSES))
    ranks = classifier_ranks(head, data)
    logits = data.features.astype(float) @ head.kernel + head.bias
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


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    """Noisy images of three colors, a class each."""
    rng, root = np.random.default_rng(0), tmp_path_factory.mktemp("colors")
    for split, count in (("train", 12), ("val", 5)):
        for name, color in {"red": (200, 60, 60), "green": (60, 190, 80), "blue": (70, 80, 210)}.items():
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = np.clip(rng.normal(color, 25, (20, 26, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{index}.png")
    return open_class_folder(root, "train"), open_class_folder(root, "val")


SIZES = {"resize": 18, "image_size": 16}


def test_colors_are_told_apart_by_both_protocols(backbone, params, splits):
    features = FrozenFeatures(backbone, params, budget=MemoryBudget(batch_size=16), remember=True)
    common = {"train": splits[0], "val": splits[1]}
    protocol = ClassificationProtocol(
        **SIZES, feature="mean", normalization="standardize", lr=1.0, epochs=30, batch_size=12
    )
    score = evaluate_classification(features, protocol=protocol, **common)
    assert score.top1 > 90 and score.top5 == 100 and len(score.losses) == 30
    np.testing.assert_allclose(np.mean(score.class_accuracy), score.top1)
    assert set(score.seconds) == {"features", "training", "scoring"}
    nearest = evaluate_knn(features, protocol=KnnProtocol(**SIZES, feature="mean", neighbors=(1, 5, 50)), **common)
    assert list(nearest.top1) == [1, 5, 36] and nearest.top1[5] > 90 and nearest.top5[36] == 100


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("feature", "max"),
        ("image_size", 300),
        ("normalization", "batch"),
        ("lr", 0.0),
        ("epochs", 0),
        ("batch_size", -1),
    ],
)
def test_impossible_settings_are_named(field, value):
    with pytest.raises(ValueError, match=field):
        ClassificationProtocol(**{field: value})
