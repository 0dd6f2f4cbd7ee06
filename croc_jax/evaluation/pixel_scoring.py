"""Scores any map from patch tokens to class scores on a split with pixel labels, in constant memory."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from croc_jax.data.labeled.segmentation import SegmentationSplit
from croc_jax.evaluation.features import FrozenFeatures
from croc_jax.evaluation.interpolation import bilinear_matrix, resize_with
from croc_jax.evaluation.metrics import confusion_matrix
from croc_jax.evaluation.visualize import Examples, ExampleSelector

# Predictions are padded to a multiple of this many pixels, so that labels of many sizes compile few times.
PADDING = 64


def score_split(
    score_fn: Callable[[Float[Array | np.ndarray, "b r c d"]], Float[Array, "b r c k"]],
    features: FrozenFeatures,
    split: SegmentationSplit,
    *,
    image_size: tuple[int, int],
    label_size: tuple[int, int] | None,
) -> tuple[Int[np.ndarray, "k k"], Examples]:
    """Returns the confusion over a whole split, and a few examples.

    Args:
        score_fn: from the tokens of patches to the score of each class; the largest one wins, bilinearly upsampled
            to the size of the labels.
        features: frozen backbone.
        split: labeled images.
        image_size: height and width that images are resized to.
        label_size: height and width of the labels; None leaves each at its own size.

    Raises:
        ValueError: if whole patches do not tile the images, or a file cannot be used.
    """
    confusion = np.zeros((split.num_classes, split.num_classes), np.int64)
    selector = ExampleSelector(split, image_size, features.module.pixels)
    for tokens, all_labels in features.token_batches(split, image_size=image_size, label_size=label_size):
        scores = score_fn(tokens)
        rows, columns = (_resize_matrices(all_labels, scores.shape, axis) for axis in (0, 1))
        predictions = np.asarray(_predict_labels(scores, rows, columns))
        for labels, padded in zip(all_labels, predictions, strict=False):
            prediction = padded[: labels.shape[0], : labels.shape[1]].copy()
            confusion += confusion_matrix(labels, prediction, num_classes=split.num_classes)
            selector.add(labels, prediction)
    return confusion, selector.examples()


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


def _resize_matrices(labels: Sequence[np.ndarray], shape: tuple[int, ...], axis: int) -> Float[np.ndarray, "b R r"]:
    """Returns matrices from one axis of scores `[b r c k]` to that of each label, padded to one size."""
    sizes = [label.shape[axis] for label in labels]
    old, padded = shape[1 + axis], -(-max(sizes) // PADDING) * PADDING
    matrices = [bilinear_matrix(old, size, padded) for size in sizes]
    return np.stack([*matrices, *[np.zeros((padded, old), np.float32)] * (shape[0] - len(sizes))])
