"""Linear segmentation from files to score equals float64 NumPy and SciPy: transformer, SGD, upsampling, mean IoU."""

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import map_coordinates
from scipy.special import log_softmax, softmax
from sklearn.metrics import jaccard_score

from croc_jax.data.labeled.segmentation import open_segmentation
from croc_jax.evaluation import FrozenFeatures, MemoryBudget
from croc_jax.evaluation.backbones import load_backbone
from croc_jax.evaluation.metrics import class_iou, mean_iou
from croc_jax.evaluation.pixel_scoring import score_split
from croc_jax.evaluation.probe import apply_head
from croc_jax.evaluation.segmentation import SegmentationConfig, fit_segmentation
from tests.checkpoints.reference_vit import forward
from tests.checkpoints.tiny_weights import PATCH, SIDE, official_weights, write

MEAN, DEVIATION = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
CLASSES, TRAIN_SIZE, SCORE_SIZE = 3, (9, 9), (10, 10)
COLORS = np.array([[200, 70, 60], [60, 180, 80], [70, 80, 210]])


@pytest.fixture(scope="module")
def data_set(tmp_path_factory):
    """Halves of two colors with noise; some pixels do not count."""
    rng, root = np.random.default_rng(0), tmp_path_factory.mktemp("halves")
    for split, count in (("train", 10), ("val", 6)):
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
        for index in range(count):
            labels = np.zeros((20, 26), np.uint8)
            cut = rng.integers(6, 20)
            labels[:, :cut], labels[:, cut:] = rng.permutation(CLASSES)[:2]
            image = np.clip(rng.normal(COLORS[labels], 45), 0, 255).astype(np.uint8)
            labels[:2] = 255
            Image.fromarray(image).save(root / "images" / split / f"{index}.png")
            Image.fromarray(labels).save(root / "labels" / split / f"{index}.png")
    return root


def read(root, split, label_size):
    """Returns pixels, normalized, and labels of a whole split."""
    images, labels = [], []
    for file in sorted((root / "images" / split).iterdir()):
        image = Image.open(file).resize((SIDE * PATCH, SIDE * PATCH), Image.Resampling.BICUBIC)
        images.append((np.asarray(image) / 255 - MEAN) / DEVIATION)
        label = Image.open(root / "labels" / split / file.name)
        labels.append(np.asarray(label.resize(label_size[::-1], Image.Resampling.NEAREST)))
    return np.stack(images), np.stack(labels).astype(int)


def upsample(grid, size):
    """Bilinear, pixel centers at (i + 0.5) * old / new, the border repeated."""
    places = np.meshgrid(*((np.arange(n) + 0.5) * SIDE / n - 0.5 for n in size), indexing="ij")
    resized = [
        [map_coordinates(image[..., channel], places, order=1, mode="nearest") for channel in range(grid.shape[-1])]
        for image in grid
    ]
    return np.moveaxis(np.array(resized), 1, -1)


def fit(tokens, labels, config):
    """SGD with momentum and decay, as PyTorch takes its steps, on the mean over the pixels that count."""
    features = upsample(np.concatenate([tokens, np.ones((*tokens.shape[:-1], 1))], -1), TRAIN_SIZE)
    weights, velocity, losses = np.zeros((features.shape[-1], CLASSES)), 0.0, []
    for epoch in range(config.epochs):
        lr = config.lr * 0.1 ** sum(epoch >= drop for drop in config.drop_epochs)
        order = np.random.default_rng((config.seed, epoch)).permutation(len(tokens))
        steps = len(tokens) // config.batch_size
        for batch in order[: steps * config.batch_size].reshape(steps, -1):
            counted = labels[batch] != 255
            x, y = features[batch][counted], labels[batch][counted]
            logits = x @ weights
            if epoch == config.epochs - 1:
                losses.append(-log_softmax(logits, axis=1)[np.arange(len(y)), y].mean())
            gradient = x.T @ (softmax(logits, axis=1) - np.eye(CLASSES)[y]) / len(y)
            velocity = 0.9 * velocity + gradient + config.weight_decay * weights
            weights = weights - lr * velocity
    return weights, np.mean(losses)


def test_the_score_equals_that_of_numpy(data_set, tmp_path):
    weights = official_weights()
    # Small last tokens, as they come from training: SGD is stable on them.
    weights["norm.weight"] *= 0.3
    config = SegmentationConfig(
        image_size=(SIDE * PATCH, SIDE * PATCH),
        train_size=TRAIN_SIZE,
        score_size=SCORE_SIZE,
        normalization="none",
        optimizer="sgd",
        lr=0.05,
        weight_decay=1e-3,
        schedule="step",
        drop_epochs=(6, 9),
        epochs=12,
        batch_size=4,
        seed=3,
    )

    def tokens_of(images):
        return forward(weights, images, num_heads=1)[1].reshape(len(images), SIDE, SIDE, -1)

    images, labels = read(data_set, "train", TRAIN_SIZE)
    layer, loss = fit(tokens_of(images), labels, config)
    images, labels = read(data_set, "val", SCORE_SIZE)
    logits = upsample(tokens_of(images) @ layer[:-1] + layer[-1], SCORE_SIZE)
    predicted, counted = logits.argmax(-1), labels != 255
    expected = 100 * jaccard_score(labels[counted], predicted[counted], average=None)

    backbone = load_backbone(write(tmp_path / "vit.safetensors", weights))
    features = FrozenFeatures(backbone.module, backbone.params, budget=MemoryBudget(batch_size=4))
    train, val = (open_segmentation(data_set, split) for split in ("train", "val"))
    data = features.collect_tokens(train, image_size=config.image_size, label_size=TRAIN_SIZE)
    probe = fit_segmentation(data, config, num_classes=CLASSES)
    sizes = {"image_size": config.image_size, "label_size": SCORE_SIZE}
    confusion, examples = score_split(lambda tokens: apply_head(probe.head, tokens), features, val, **sizes)
    assert probe.losses[-1] == pytest.approx(loss, abs=1e-3)
    # Half precision of the tokens moves a pixel at the border of two classes now and then.
    np.testing.assert_allclose(100 * class_iou(confusion), expected, atol=0.5)
    miou = 100 * mean_iou(confusion)
    assert miou == pytest.approx(np.mean(expected), abs=0.3)
    found = np.stack([example.prediction for example in examples.typical])
    assert np.mean(found == predicted) > 0.995
    assert 40 < miou < 99, "a probe that neither fails nor finds everything separates right from wrong"
