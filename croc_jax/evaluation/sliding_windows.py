"""Scores logits of overlapping windows on a split: sliding-window inference, exact and in bounded memory."""

from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Real, UInt8

from croc_jax.data.labeled.label_files import Ids
from croc_jax.data.labeled.segmentation import SegmentationSplit
from croc_jax.data.prefetch import load_ahead
from croc_jax.evaluation.features import FrozenFeatures, check_finite
from croc_jax.evaluation.interpolation import bilinear_matrix, resize_with
from croc_jax.evaluation.labeled_crops import resize_bilinear, short_side_size
from croc_jax.evaluation.pixel_scoring import score_predictions
from croc_jax.evaluation.settings import CropConfig
from croc_jax.evaluation.visualize import Examples

# Rows of pixels that are predicted at once, and the number that columns are padded to a multiple of.
_BLOCK = 64


def score_windows(
    logits_fn: Callable[[np.ndarray], Float[Array, "b r c k"]],
    features: FrozenFeatures,
    split: SegmentationSplit,
    config: CropConfig,
    *,
    stride: int,
) -> tuple[Int[np.ndarray, "k k"], Examples]:
    """Returns the confusion over a whole split, and a few examples.

    Images are resized to `config.short_side`. The logits of windows are upsampled to the window, averaged where windows
    overlap, and upsampled to the size of each label file; the largest one wins.

    Args:
        logits_fn: from windows `[b s s c]`, a constant number of them, to logits of patches.
        features: limits of memory, and progress.
        split: labeled images.
        config: sizes.
        stride: pixels between windows.

    Raises:
        ValueError: if a file cannot be used, or a logit is not finite.
    """
    pairs = _predict_split(logits_fn, features, split, config, stride=stride)
    image_size = (config.short_side, config.short_side)
    return score_predictions(pairs, split, image_size=image_size, pixels=features.module.pixels)


def _predict_split(
    logits_fn: Callable[[np.ndarray], Array],
    features: FrozenFeatures,
    split: SegmentationSplit,
    config: CropConfig,
    *,
    stride: int,
) -> Iterator[tuple[Ids, Ids]]:
    """Yields labels and prediction of each image."""
    budget, pixels, progress = features.budget, features.module.pixels, features.progress

    def load(index: int) -> tuple[np.ndarray, np.ndarray]:
        image, labels = split.load(index, pixels=pixels)
        size = short_side_size(labels.shape, config.short_side)
        return resize_bilinear(image, size, antialias=config.antialias), labels

    batches = load_ahead(load, len(split), budget.batch_size, num_threads=budget.num_threads)
    if progress is not None:
        total = -(-len(split) // budget.batch_size)
        batches = progress.track(batches, total=total, description=f"batches of {split.name}")
    for loaded in batches:
        starts = [
            [window_starts(length, config.crop_size, stride) for length in image.shape[:2]] for image, _ in loaded
        ]
        windows = _cut([image for image, _ in loaded], starts, config.crop_size)
        grids = iter(_in_batches(logits_fn, windows, budget.batch_size, split.name))
        for (image, labels), (tops, lefts) in zip(loaded, starts, strict=True):
            rows = [np.concatenate([next(grids) for _ in lefts], axis=1) for _ in tops]
            grid = np.concatenate(rows)
            yield labels, merge_windows(grid, (tops, lefts), image.shape[:2], labels.shape, config)
    split.turned.tell(f"{split.root}, {split.name}")


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Returns the first pixel of each window along an axis; the last one ends with it.

    Examples:
        >>> window_starts(683, 512, 341)
        [0, 171]
    """
    count = -(-max(length - window, 0) // stride) + 1
    return [max(min(number * stride, length - window), 0) for number in range(count)]


def merge_windows(
    grid: Float[np.ndarray, "R C k"],
    starts: tuple[list[int], list[int]],
    image_size: tuple[int, int],
    label_size: tuple[int, int],
    config: CropConfig,
) -> UInt8[np.ndarray, "H W"]:
    """Returns the class of each pixel.

    To upsample logits to windows, to average these and to resize the average are linear along each axis: their product
    is one matrix from the logits of all windows, side by side, to the pixels of the labels.

    Args:
        grid: logits of the patches of all windows, the windows side by side.
        starts: first row, and first column, of each window.
        image_size: height and width of the resized image.
        label_size: height and width of the labels.
        config: sizes.
    """
    rows, columns = (
        _axis_matrix(of, image_size[axis], config.crop_size, grid.shape[axis] // len(of), label_size[axis])
        for axis, of in enumerate(starts)
    )
    predicted = [_predict(grid, block, columns) for block in np.split(rows, range(_BLOCK, len(rows), _BLOCK))]
    return np.concatenate([np.asarray(block) for block in predicted])[: label_size[0], : label_size[1]]


@jax.jit
def _predict(
    grid: Float[Array, "R C k"], rows: Float[Array, "h R"], columns: Float[Array, "w C"]
) -> UInt8[Array, "h w"]:
    return jnp.argmax(resize_with(rows, columns, grid), axis=-1).astype(jnp.uint8)


def _axis_matrix(
    starts: Sequence[int], length: int, window: int, patches: int, new: int
) -> Float[np.ndarray, "padded windows*patches"]:
    """Returns the weights from the patches of all windows along an axis to the pixels of labels, padded with zeros."""
    placed = np.zeros((length, len(starts), patches))
    for number, start in enumerate(starts):
        placed[start : start + window, number] = bilinear_matrix(patches, window)
    placed /= np.count_nonzero(placed.any(axis=2), axis=1)[:, None, None]
    padded = -(-new // _BLOCK) * _BLOCK
    return (bilinear_matrix(length, new, padded) @ placed.reshape(length, -1)).astype(np.float32)


def _cut(images: Sequence[np.ndarray], starts: Sequence[Sequence[list[int]]], side: int) -> Iterator[np.ndarray]:
    for image, (tops, lefts) in zip(images, starts, strict=True):
        yield from (image[top : top + side, left : left + side] for top in tops for left in lefts)


def _in_batches(
    logits_fn: Callable[[np.ndarray], Array], windows: Iterator[Real[np.ndarray, "s s c"]], size: int, name: str
) -> Iterator[Float[np.ndarray, "r c k"]]:
    """Yields the logits of each window; the last batch is filled with copies."""
    found = list(windows)
    for first in range(0, len(found), size):
        part = found[first : first + size]
        logits = logits_fn(np.stack([*part, *part[:1] * (size - len(part))]))
        check_finite(logits, f"the split {name}")
        yield from np.asarray(logits)[: len(part)]
