"""The linear layer learns exactly what NumPy and SciPy learn."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from sklearn.metrics import log_loss

from croc_jax.evaluation.features import LabeledTokens
from croc_jax.evaluation.interpolation import bilinear_matrix
from croc_jax.evaluation.segmentation import SegmentationConfig, fit_segmentation, masked_cross_entropy

RNG = np.random.default_rng(0)
CLASSES = 3
SIZE = (6, 10)


def make_data(count=8, width=4, grid=(3, 5), size=SIZE):
    """Tokens, and labels that depend on them but not only."""
    tokens = RNG.standard_normal((count, *grid, width)).astype(np.float16)
    scores = upsample(tokens.astype(float) @ RNG.standard_normal((width, CLASSES)), size)
    labels = np.argmax(scores + 0.7 * RNG.standard_normal(scores.shape), -1).astype(np.uint8)
    labels[RNG.random(labels.shape) < 0.15] = 255
    return LabeledTokens(tokens, labels)


def upsample(grid, size):
    rows, columns = (bilinear_matrix(old, new).astype(float) for old, new in zip(grid.shape[1:3], size, strict=True))
    return np.einsum("Rr,Cc,brck->bRCk", rows, columns, grid)


def design(data, size=SIZE):
    """Returns the upsampled tokens with a 1 for the bias, and the labels, where these count."""
    features = upsample(data.tokens.astype(float), size)
    features = np.concatenate([features, np.ones((*features.shape[:3], 1))], -1)
    counted = data.labels != 255
    return features[counted], data.labels[counted].astype(int)


def loss_and_gradient(weights, features, labels, decay=0.0):
    weights = weights.reshape(-1, CLASSES)
    logits = features @ weights
    loss = -log_softmax(logits, axis=1)[np.arange(len(labels)), labels].mean() + decay / 2 * np.sum(weights**2)
    residual = softmax(logits, axis=1) - np.eye(CLASSES)[labels]
    return loss, (features.T @ residual / len(labels) + decay * weights).ravel()


def make_config(**settings):
    defaults = {"image_size": (24, 40), "train_size": SIZE, "normalization": "none", "optimizer": "sgd"}
    return SegmentationConfig(**(defaults | settings))


def weights_of(fit):
    return np.concatenate([fit.head.kernel, fit.head.bias[None]])


def test_sgd_takes_the_steps_of_numpy():
    data = make_data(count=7)
    settings = make_config(
        lr=0.5, weight_decay=0.01, schedule="step", drop_epochs=(2, 3), epochs=4, batch_size=2, seed=5
    )
    fit = fit_segmentation(data, settings, num_classes=CLASSES)
    weights, velocity, losses = np.zeros((5, CLASSES)), 0.0, []
    for epoch, lr in enumerate((0.5, 0.5, 0.05, 0.005)):
        order = np.random.default_rng((5, epoch)).permutation(7)[:6].reshape(3, 2)
        epoch_losses = []
        for batch in order:
            features, labels = design(LabeledTokens(data.tokens[batch], data.labels[batch]))
            loss, _ = loss_and_gradient(weights, features, labels)
            _, gradient = loss_and_gradient(weights, features, labels, 0.01)
            velocity = 0.9 * velocity + gradient.reshape(weights.shape)
            weights = weights - lr * velocity
            epoch_losses.append(loss)
        losses.append(np.mean(epoch_losses))
    np.testing.assert_allclose(weights_of(fit), weights, atol=2e-5)
    np.testing.assert_allclose(fit.losses, losses, atol=1e-5)


def test_a_layer_that_is_not_finite_is_refused():
    settings = make_config(optimizer="sgd", schedule="step", lr=3e38, epochs=4, batch_size=6)
    with pytest.raises(ValueError, match=r"lr=3e\+38: the loss of the linear layer is (nan|inf) in epoch"):
        fit_segmentation(make_data(count=6), settings, num_classes=CLASSES)


@pytest.mark.parametrize("normalization", ["none", "standardize", "whiten"])
def test_a_long_run_reaches_the_optimum_of_scipy(normalization):
    data = make_data(count=6)
    optimum = minimize(loss_and_gradient, np.zeros(5 * CLASSES), args=design(data), jac=True, tol=1e-12)
    settings = make_config(normalization=normalization, lr=1.0, schedule="cosine", epochs=500, batch_size=6)
    fit = fit_segmentation(data, settings, num_classes=CLASSES)
    found = weights_of(fit)
    assert loss_and_gradient(found, *design(data))[0] == pytest.approx(optimum.fun, abs=1e-6)
    expected = optimum.x.reshape(5, CLASSES)
    np.testing.assert_allclose(
        found - found.mean(1, keepdims=True), expected - expected.mean(1, keepdims=True), atol=2e-3
    )


@pytest.mark.parametrize("device_gib", [0.0, 4 * 2 * 3 * 5 * 4 * 2 / 2**30])
def test_streamed_tokens_give_what_resident_ones_give(device_gib):
    data = make_data(count=11)
    settings = make_config(optimizer="adamw", normalization="whiten", lr=0.1, epochs=3, batch_size=2)
    resident = fit_segmentation(data, settings, num_classes=CLASSES)
    streamed = fit_segmentation(data, settings, num_classes=CLASSES, device_gib=device_gib)
    np.testing.assert_allclose(weights_of(streamed), weights_of(resident), atol=1e-5)
    np.testing.assert_allclose(streamed.losses, resident.losses, atol=1e-6)


def test_cross_entropy_equals_scikit_learn_and_skips_ignored_pixels():
    logits, labels = RNG.standard_normal((2, 9, CLASSES)), RNG.integers(0, CLASSES, (2, 9)).astype(np.uint8)
    labels[0, :4] = 255
    counted = labels != 255
    expected = log_loss(labels[counted], softmax(logits[counted], axis=-1), labels=range(CLASSES))
    assert float(masked_cross_entropy(logits, labels)) == pytest.approx(expected, abs=1e-6)
    assert float(masked_cross_entropy(logits, np.full((2, 9), 255, np.uint8))) == 0
