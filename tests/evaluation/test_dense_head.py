"""Training of the head takes the steps that NumPy takes in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import log_softmax, softmax

from croc_jax.evaluation.dense_head import (
    CropStep,
    DenseHead,
    encode_padded,
    init_head,
    make_crop_encoder,
    make_schedule,
    make_step_fn,
)
from croc_jax.evaluation.interpolation import bilinear_matrix
from croc_jax.evaluation.settings import DistortionConfig
from croc_jax.models import Features
from croc_jax.models.batch_norm import STATISTICS
from croc_jax.pixel_format import RGB8

CLASSES, WIDTH, GRID, SIZE, STEPS = 3, 4, (3, 2), 7, 5
LR, DECAY = 0.02, 0.1


def numpy_steps(params, batches, rates):
    """Yields (loss, parameters, running mean and variance) after each step of AdamW, in float64."""
    scale, offset, kernel, bias = (np.asarray(of, float) for of in params)
    weights, running = [scale, offset, kernel, bias], [np.zeros(WIDTH), np.ones(WIDTH)]
    first, second = ([np.zeros_like(of) for of in weights] for _ in range(2))
    rows, columns = (bilinear_matrix(of, SIZE).astype(float) for of in GRID)
    for step, ((tokens, labels), rate) in enumerate(zip(batches, rates, strict=True), 1):
        flat = tokens.reshape(-1, WIDTH)
        mean, variance = flat.mean(0), flat.var(0)
        unit = (tokens - mean) / np.sqrt(variance + 1e-5)
        inputs = unit * weights[0] + weights[1]
        logits = np.einsum("Rr,Cc,brck->bRCk", rows, columns, inputs @ weights[2] + weights[3])
        counted, targets = labels != 255, np.where(labels == 255, 0, labels)
        one_hot = np.eye(CLASSES)[targets]
        loss = -np.sum(log_softmax(logits, -1) * one_hot * counted[..., None]) / labels.size
        slope = (softmax(logits, -1) - one_hot) * counted[..., None] / labels.size
        slope = np.einsum("Rr,Cc,bRCk->brck", rows, columns, slope)
        back = slope @ weights[2].T
        gradients = [
            np.sum(back * unit, (0, 1, 2)),
            np.sum(back, (0, 1, 2)),
            np.einsum("brcd,brck->dk", inputs, slope),
            np.sum(slope, (0, 1, 2)),
        ]
        for index, gradient in enumerate(gradients):
            first[index] = 0.9 * first[index] + 0.1 * gradient
            second[index] = 0.999 * second[index] + 0.001 * gradient**2
            moved = first[index] / (1 - 0.9**step) / (np.sqrt(second[index] / (1 - 0.999**step)) + 1e-8)
            weights[index] = weights[index] - rate * (moved + DECAY * weights[index])
        unbiased = variance * len(flat) / (len(flat) - 1)
        running = [0.9 * old + 0.1 * new for old, new in zip(running, (mean, unbiased), strict=True)]
        yield loss, weights, running


def test_training_takes_the_steps_of_numpy():
    rng = np.random.default_rng(0)
    batches = []
    for _ in range(STEPS):
        labels = rng.integers(0, CLASSES, (2, SIZE, SIZE)).astype(np.uint8)
        labels[rng.random(labels.shape) < 0.2] = 255
        batches.append((rng.normal(1, 2, (2, *GRID, WIDTH)).astype(np.float32), labels))
    schedule = make_schedule(lr=LR, iterations=STEPS, warmup_iterations=2, shape="linear")
    head, tx = DenseHead(CLASSES), optax.adamw(schedule, eps=1e-8, weight_decay=DECAY)
    state = init_head(head, tx, width=WIDTH, seed=3)
    norm, layer = state.params["norm"], state.params["layer"]
    assert 0.003 < np.std(layer["kernel"]) < 0.03 and not layer["bias"].any()
    start = norm["scale"], norm["bias"], layer["kernel"], layer["bias"]
    rates = [LR * 1e-6, LR * 0.8 * (1 - 0.5 * (1 - 1e-6)), LR * 0.6, LR * 0.4, LR * 0.2]
    step_fn = make_step_fn(lambda params, step, key: step.images, head, tx, seed=0)
    expected = numpy_steps(start, [(tokens.astype(float), labels) for tokens, labels in batches], rates)
    for number, ((tokens, labels), (loss, weights, running)) in enumerate(zip(batches, expected, strict=True)):
        state, found = step_fn(None, state, CropStep(tokens, labels, np.zeros((2, 2), int), number))
        assert float(found) == pytest.approx(loss, abs=1e-6)
        norm, layer = state.params["norm"], state.params["layer"]
        of_step = norm["scale"], norm["bias"], layer["kernel"], layer["bias"], norm["mean"], norm["variance"]
        for of, wanted in zip(of_step, [*weights, *running], strict=True):
            np.testing.assert_allclose(of, wanted, atol=2e-5)
    scored = jax.jit(lambda tokens: head.apply({"params": state.params}, tokens, train=False))(batches[0][0])
    inputs = (batches[0][0] - running[0]) / np.sqrt(running[1] + 1e-5) * weights[0] + weights[1]
    np.testing.assert_allclose(scored, inputs @ weights[2] + weights[3], atol=1e-4)


def test_the_cosine_is_one_step_late_and_goes_on_from_the_warm_up():
    lr, total, warm = 0.1, 40, 8
    schedule = make_schedule(lr=lr, iterations=total, warmup_iterations=warm, shape="cosine")
    for step in range(total):
        late = max(step - 1, 0)
        if late < warm:
            expected = lr * (1 - (1 - late / warm) * (1 - 1e-6)) * (1 - late / total)
        else:
            expected = lr / 2 * (1 + np.cos(np.pi * (late + 1) / total))
        assert float(schedule(step)) == pytest.approx(expected, abs=1e-7), step


def test_dropout_drops_whole_features_of_an_image():
    head = DenseHead(2, dropout=0.5)
    params = init_head(head, optax.identity(), width=64, seed=0).params
    options = {"train": True, "rngs": {"dropout": jax.random.key(1)}, "mutable": [STATISTICS]}
    _, left = jax.jit(lambda tokens: head.apply({"params": params}, tokens, **options))(jnp.ones((1, 3, 3, 64)))
    means = np.asarray(left[STATISTICS]["norm"]["mean"])
    assert set(means.tolist()) == {0.0, 2.0} and 15 < np.count_nonzero(means) < 49


class Averages:
    """A backbone whose token is the mean of the colors of its patch."""

    patch_size, pixels, image_mean, image_std = 4, RGB8, (0.4, 0.5, 0.3), (0.2, 0.1, 0.3)

    def apply(self, variables, images):
        b, height, width, _ = images.shape
        means = images.reshape(b, height // 4, 4, width // 4, 4, 3).mean((2, 4))
        return Features(means[:, 0, 0], means.reshape(b, -1, 3))


def test_images_that_patches_do_not_tile_lie_in_the_middle_of_zeros():
    images = np.random.default_rng(0).normal(size=(2, 13, 18, 3)).astype(np.float32)
    padded = np.zeros((2, 16, 20, 3))
    padded[:, 1:14, 1:19] = images
    found = encode_padded(Averages(), {}, images)
    np.testing.assert_allclose(found, padded.reshape(2, 4, 4, 5, 4, 3).mean((2, 4)), atol=1e-6)


def test_crops_are_zero_beyond_their_image_after_normalization():
    nothing = DistortionConfig(brightness=0, contrast=0, saturation=0, hue=0)
    images = np.random.default_rng(0).integers(0, 256, (2, 12, 12, 3)).astype(np.uint8)
    step = CropStep(images, np.zeros((2, 12, 12), np.uint8), np.array([[12, 12], [8, 4]]), 0)
    found = jax.jit(make_crop_encoder(Averages(), nothing))({}, step, jax.random.key(0))
    normalized = (images / 255 - Averages.image_mean) / Averages.image_std
    normalized[1, 8:] = normalized[1, :, 4:] = 0
    np.testing.assert_allclose(found, normalized.reshape(2, 3, 4, 3, 4, 3).mean((2, 4)), atol=1e-5)
