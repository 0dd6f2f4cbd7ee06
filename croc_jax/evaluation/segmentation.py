"""Evaluates a frozen backbone by linear segmentation: features, linear layer, score."""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from croc_jax.data.labeled.segmentation import IGNORED, SegmentationSplit
from croc_jax.evaluation.examples import Gallery, GalleryKeeper
from croc_jax.evaluation.features import FrozenFeatures
from croc_jax.evaluation.interpolation import bilinear_matrix, resize_with
from croc_jax.evaluation.linear import LinearHead, LinearProtocol, apply_head, fit_linear
from croc_jax.evaluation.metrics import class_iou, confusion_matrix, mean_iou

# Predictions are padded to a multiple of this many pixels, so that labels of many sizes compile few times.
PADDING = 64


class LinearScore(NamedTuple):
    """The result of linear segmentation.

    Attributes:
        miou: mean IoU over the classes that occur, in percent.
        class_iou: of each class, in percent; NaN for a class in neither labels nor predictions.
        confusion: pixels of each (class, prediction) over the whole split.
        losses: mean training loss of each epoch.
        seconds: of each phase.
        gallery: a few images.
    """

    miou: float
    class_iou: Float[np.ndarray, " k"]
    confusion: Int[np.ndarray, "k k"]
    losses: Float[np.ndarray, " epochs"]
    seconds: dict[str, float]
    gallery: Gallery


def evaluate_linear(
    features: FrozenFeatures, *, train: SegmentationSplit, val: SegmentationSplit, protocol: LinearProtocol
) -> LinearScore:
    """Trains a linear layer on frozen tokens of one split and scores it on another.

    Args:
        features: of the backbone.
        train: labeled images for the layer.
        val: labeled images for the score.
        protocol: every setting that moves the score.

    Raises:
        ValueError: if whole patches do not tile the protocol's images.
        LabeledDataError: see `SegmentationSplit.load`.
    """
    clock = [time.perf_counter()]
    data = features.collect_tokens(train, image_size=protocol.image_size, label_size=protocol.train_size)
    clock.append(time.perf_counter())
    fit = fit_linear(
        data,
        protocol,
        num_classes=train.num_classes,
        device_gib=features.budget.device_gib,
        progress=features.progress,
    )
    clock.append(time.perf_counter())
    confusion, gallery = score_linear(features, fit.head, val, protocol=protocol)
    clock.append(time.perf_counter())
    seconds = {phase: clock[i + 1] - clock[i] for i, phase in enumerate(("features", "training", "scoring"))}
    per_class = 100 * class_iou(confusion)
    return LinearScore(100 * mean_iou(confusion), per_class, confusion, fit.losses, seconds, gallery)


def score_linear(
    features: FrozenFeatures, head: LinearHead, split: SegmentationSplit, *, protocol: LinearProtocol
) -> tuple[Int[np.ndarray, "k k"], Gallery]:
    """Returns the confusion over a whole split, and a few examples, of a linear layer.

    Args:
        features: of the backbone.
        head: the layer.
        split: labeled images.
        protocol: for the sizes.
    """
    return score_split(
        lambda tokens: apply_head(head, tokens),
        features,
        split,
        image_size=protocol.image_size,
        label_size=protocol.score_size,
    )


def score_split(
    score_fn: Callable[[Float[Array | np.ndarray, "b r c d"]], Float[Array, "b r c k"]],
    features: FrozenFeatures,
    split: SegmentationSplit,
    *,
    image_size: tuple[int, int],
    label_size: tuple[int, int] | None,
) -> tuple[Int[np.ndarray, "k k"], Gallery]:
    """Returns the confusion over a whole split, and a few examples; nothing else is kept.

    Args:
        score_fn: gives each class's score in each patch from its tokens; the largest wins,
            bilinearly upsampled to the size of the labels.
        features: of the backbone.
        split: labeled images.
        image_size: that images are resized to.
        label_size: alike for labels; None leaves each at its own size.
    """
    confusion = np.zeros((split.num_classes, split.num_classes), np.int64)
    keeper = GalleryKeeper(split, image_size)
    for batch in features.token_batches(split, image_size=image_size, label_size=label_size):
        scores = score_fn(batch.tokens)
        rows, columns = _resize_matrices(batch.labels, scores.shape[:3])
        predictions = np.asarray(_predict_labels(scores, rows, columns))
        for labels, padded in zip(batch.labels, predictions, strict=False):
            prediction = padded[: labels.shape[0], : labels.shape[1]].copy()
            confusion += confusion_matrix(labels, prediction, num_classes=split.num_classes, ignored=IGNORED)
            keeper.consider(labels, prediction)
    return confusion, keeper.gallery()


@jax.jit
def _predict_labels(
    scores: Float[Array, "b r c k"],
    rows: Float[Array | np.ndarray, "b R r"],
    columns: Float[Array | np.ndarray, "b C c"],
) -> UInt8[Array, "b R C"]:
    """Returns the class of the largest upsampled score of each pixel, by the matrices of `bilinear_matrix`."""

    def predict_one(parts: tuple[Array, Array, Array]) -> Array:
        grid, image_rows, image_columns = parts
        return jnp.argmax(resize_with(image_rows, image_columns, grid), axis=-1).astype(jnp.uint8)

    # One image at a time: scores of every pixel and class of a whole batch can be gigabytes.
    return jax.lax.map(predict_one, (scores, rows, columns))


def _resize_matrices(labels: Sequence[np.ndarray], grid: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Returns matrices `[b R r]` and `[b C c]` from a grid (b, r, c) to each label's size."""
    count, *axes = grid
    matrices = []
    for axis, old in enumerate(axes):
        sizes = [label.shape[axis] for label in labels]
        padded = -(-max(sizes) // PADDING) * PADDING
        stack = np.zeros((count, padded, old), np.float32)
        for index, size in enumerate(sizes):
            stack[index] = bilinear_matrix(old, size, padded)
        matrices.append(stack)
    return matrices[0], matrices[1]
