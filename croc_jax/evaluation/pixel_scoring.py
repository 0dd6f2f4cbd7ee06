"""Scores any map from patch tokens to class scores on a split with pixel labels, in constant memory."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from croc_jax.data.labeled.label_files import IGNORED
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
    selector = ExampleSelector(split, image_size)
    for batch in features.token_batches(split, image_size=image_size, label_size=label_size):
        scores = score_fn(batch.tokens)
        rows, columns = _resize_matrices(batch.labels, scores.shape[:3])
        predictions = np.asarray(_predict_labels(scores, rows, columns))
        for labels, padded in zip(batch.labels, predictions, strict=False):
            prediction = padded[: labels.shape[0], : labels.shape[1]].copy()
            confusion += confusion_matrix(labels, prediction, num_classes=split.num_classes, ignored=IGNORED)
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
