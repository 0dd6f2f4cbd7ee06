"""A memory of labeled patches: float16 tokens and what is known of the pixels of each, within the host's budget."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Shaped, UInt8, UInt16

from croc_jax.data.labeled.label_files import IGNORED
from croc_jax.data.labeled.segmentation import SegmentationSplit
from croc_jax.evaluation.features import FrozenFeatures
from croc_jax.evaluation.mmap import release_pages
from croc_jax.evaluation.retrieval_views import ViewedSplit
from croc_jax.evaluation.search import Scaled, length_scales


class Memory(NamedTuple):
    """Float16 tokens, their factors to unit length, and the labels of their patches; all perhaps memory-mapped."""

    tokens: Scaled
    labels: Shaped[np.ndarray, "m l"]


# From the ids of the pixels of each patch of an image to the patches to keep, and what to keep of their labels.
ChooseFn = Callable[[UInt8[np.ndarray, "n p"]], tuple[Int[np.ndarray, " k"], Shaped[np.ndarray, "k l"]]]


def build_memory(
    features: FrozenFeatures,
    splits: Sequence[SegmentationSplit],
    choose_fn: ChooseFn,
    *,
    image_size: tuple[int, int],
    most: int,
    label_width: int,
    label_dtype: type[np.unsignedinteger],
) -> Memory:
    """Returns chosen patches of all images, in the order of splits and images.

    Args:
        features: frozen backbone.
        splits: labeled images; a view per pass over the same images.
        choose_fn: is called once for each image, in order.
        image_size: height and width of images and labels.
        most: patches of an image that may be kept.
        label_width: numbers that are kept of the labels of a patch.
        label_dtype: their type.

    Raises:
        ValueError: if whole patches do not tile the images, a file cannot be used, or a feature is not finite.
    """
    grid = features.grid(image_size)
    rows, count = most * sum(map(len, splits)), 0
    tokens = Scaled(
        features.allocate((rows, features.module.width), np.float16), features.allocate((rows,), np.float32)
    )
    labels = features.allocate((rows, label_width), label_dtype)
    for split in splits:
        # Nobody asks for the same random crops again.
        once = isinstance(split, ViewedSplit) and split.augmentation != "none"
        batches_fn = features.encode_batches if once else features.token_batches
        for batch, ids_of_batch in batches_fn(split, image_size=image_size, label_size=image_size):
            images = zip(np.asarray(batch), np.asarray(length_scales(batch)), ids_of_batch, strict=False)
            for image, scales, ids in images:
                places, kept = choose_fn(cut_patches(ids, grid))
                part = slice(count, count + len(places))
                tokens.vectors[part] = image.reshape(-1, image.shape[-1])[places]
                tokens.scales[part], labels[part] = scales.reshape(-1)[places], kept
                count = part.stop
            for array in (*tokens, labels):
                release_pages(array)
    return Memory(Scaled(*(of[:count] for of in tokens)), labels[:count])


def collect_queries(features: FrozenFeatures, split: SegmentationSplit, *, image_size: tuple[int, int]) -> Scaled:
    """Returns all patches of a split; arguments and errors as for `build_memory`."""
    grid, size = features.grid(image_size), features.budget.batch_size
    tokens = features.collect_tokens(split, image_size=image_size, label_size=grid).tokens
    tokens = tokens.reshape(-1, tokens.shape[-1])
    scales = features.allocate((len(tokens),), np.float32)
    rows = size * grid[0] * grid[1]
    for start in range(0, len(tokens), rows):
        part = tokens[start : start + rows]
        padded = np.zeros((rows, part.shape[1]), part.dtype)
        padded[: len(part)] = part
        scales[start : start + rows] = np.asarray(length_scales(padded))[: len(part)]
        release_pages(tokens)
    return Scaled(tokens, scales)


def cut_patches(ids: UInt8[np.ndarray, "H W"], grid: tuple[int, int]) -> UInt8[np.ndarray, "n p"]:
    """Returns the pixels of each patch, row by row."""
    rows, columns = grid
    patches = ids.reshape(rows, ids.shape[0] // rows, columns, ids.shape[1] // columns).swapaxes(1, 2)
    return patches.reshape(rows * columns, -1)


def join_patches(patches: UInt8[np.ndarray, "n p"], image_size: tuple[int, int], grid: tuple[int, int]) -> np.ndarray:
    """Returns the pixels `[H W]` of an image from those of its patches."""
    (rows, columns), (height, width) = grid, image_size
    return patches.reshape(rows, columns, height // rows, width // columns).swapaxes(1, 2).reshape(height, width)


def count_pixels(ids: UInt8[np.ndarray, "n p"], *, num_classes: int) -> UInt16[np.ndarray, "n k"]:
    """Returns the pixels of each class in each patch; ignored ones count for none."""
    counted = ids != IGNORED
    index = np.arange(len(ids))[:, None] * num_classes + np.where(counted, ids, 0)
    counts = np.bincount(index[counted], minlength=len(ids) * num_classes)
    return counts.reshape(-1, num_classes).astype(np.uint16)
