"""Draws resized, cropped and flipped training images with their pixel labels, as MMSegmentation does."""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Real, UInt8
from scipy import sparse

from croc_jax.data.labeled.label_files import IGNORED
from croc_jax.data.labeled.segmentation import SegmentationSplit
from croc_jax.data.prefetch import load_ahead
from croc_jax.evaluation.settings import CropConfig
from croc_jax.pixel_format import RGB8, PixelFormat

# Places that are tried for a crop in which no class has too large a share, as in MMSegmentation.
_TRIALS = 10


class CropBatch(NamedTuple):
    """Crops of one size.

    Attributes:
        images: values as they are stored; zeros beyond the image.
        labels: class ids; ignored beyond the image.
        sizes: height and width of the part of each crop that the image covers; the rest is below it and to its right.
    """

    images: Real[np.ndarray, "b s s c"]
    labels: UInt8[np.ndarray, "b s s"]
    sizes: Real[np.ndarray, "b 2"]


def crop_batches(
    split: SegmentationSplit,
    config: CropConfig,
    *,
    count: int,
    batch_size: int,
    seed: int,
    num_threads: int,
    pixels: PixelFormat = RGB8,
) -> Iterator[CropBatch]:
    """Yields batches of crops: each image once, in random order, before any of them again.

    Args:
        split: labeled images.
        config: how crops are drawn.
        count: number of batches.
        batch_size: crops a batch.
        seed: seed of the order and of all crops; the number of threads changes nothing.
        num_threads: threads that decode and resize.
        pixels: format of the images.

    Raises:
        ValueError: for a file that cannot be used.
    """

    @functools.lru_cache(maxsize=2)
    def order(epoch: int) -> np.ndarray:
        return np.random.default_rng((seed, 0, epoch)).permutation(len(split))

    def load(number: int) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
        epoch, place = divmod(number, len(split))
        image, labels = split.load(order(epoch)[place], pixels=pixels)
        return draw_crop(np.random.default_rng((seed, 1, number)), image, labels, config)

    for crops in load_ahead(load, count * batch_size, batch_size, num_threads=num_threads):
        images, labels, sizes = zip(*crops, strict=True)
        yield CropBatch(np.stack(images), np.stack(labels), np.array(sizes, np.int32))


def draw_crop(
    rng: np.random.Generator, image: Real[np.ndarray, "H W c"], labels: UInt8[np.ndarray, "H W"], config: CropConfig
) -> tuple[Real[np.ndarray, "s s c"], UInt8[np.ndarray, "s s"], tuple[int, int]]:
    """Returns a crop of a resized image, its labels, and height and width of the part that the image covers."""
    size = short_side_size(image.shape[:2], int(config.short_side * rng.uniform(*config.scale)))
    # Only the labels are needed to choose a place.
    resized = labels[np.ix_(*map(_nearest, image.shape[:2], size))]
    rows, columns = _draw_place(rng, size, config.crop_size)
    for _ in range(_TRIALS):
        if _is_mixed(resized[rows, columns], config.max_class_share):
            break
        rows, columns = _draw_place(rng, size, config.crop_size)
    crop, ids = resize_bilinear(image, size, rows, columns, antialias=config.antialias), resized[rows, columns]
    if rng.random() < config.flip:
        crop, ids = crop[:, ::-1], ids[:, ::-1]
    below, right = config.crop_size - ids.shape[0], config.crop_size - ids.shape[1]
    padded = np.pad(crop, ((0, below), (0, right), (0, 0)))
    return padded, np.pad(ids, ((0, below), (0, right)), constant_values=IGNORED), ids.shape


def short_side_size(size: tuple[int, int], short_side: int) -> tuple[int, int]:
    """Returns height and width of an image whose shorter side is resized to a length, proportions kept.

    Examples:
        >>> short_side_size((300, 400), 512)
        (512, 683)
    """
    height, width = (int(length * short_side / min(size) + 0.5) for length in size)
    return height, width


def resize_bilinear(
    image: Real[np.ndarray, "H W c"],
    size: tuple[int, int],
    rows: slice = slice(None),
    columns: slice = slice(None),
    *,
    antialias: bool,
) -> Real[np.ndarray, "h w c"]:
    """Resizes bilinearly in floating point; integers are rounded at the end.

    Args:
        image: an image of any type and number of channels.
        size: height and width that the whole image would get.
        rows: rows of the resized image to compute.
        columns: columns of it to compute.
        antialias: whether all pixels count that a pixel of a smaller image covers, as in Pillow and torchvision, or
            only its neighbors, as in OpenCV.
    """
    height, width, channels = image.shape
    vertical, horizontal = _triangles(height, size[0], antialias)[rows], _triangles(width, size[1], antialias)[columns]
    resized = (vertical @ image.reshape(height, -1).astype(np.float32)).reshape(-1, width, channels)
    resized = horizontal @ resized.swapaxes(0, 1).reshape(width, -1)
    resized = resized.reshape(horizontal.shape[0], -1, channels).swapaxes(0, 1)
    return (np.rint(resized) if image.dtype.kind == "u" else resized).astype(image.dtype)


def _triangles(old: int, new: int, antialias: bool) -> sparse.csr_array:
    """Returns the weights `[new old]` of a bilinear resizing of one axis; the border is repeated."""
    radius = max(old / new, 1.0) if antialias else 1.0
    centers = (np.arange(new) + 0.5) * old / new - 0.5
    taps = np.floor(centers - radius).astype(int)[:, None] + np.arange(int(2 * radius) + 3)
    weights: Float[np.ndarray, "new taps"] = np.maximum(1 - np.abs(taps - centers[:, None]) / radius, 0)
    weights[(taps < 0) | (taps >= old)] = 0
    weights /= weights.sum(axis=1, keepdims=True)
    places = np.nonzero(weights)
    return sparse.csr_array((weights[places].astype(np.float32), (places[0], taps[places])), shape=(new, old))


def _nearest(old: int, new: int) -> np.ndarray:
    return ((np.arange(new) + 0.5) * old / new).astype(int)


def _draw_place(rng: np.random.Generator, size: tuple[int, int], side: int) -> tuple[slice, slice]:
    top, left = (rng.integers(max(length - side, 0) + 1) for length in size)
    return slice(top, top + side), slice(left, left + side)


def _is_mixed(ids: UInt8[np.ndarray, "h w"], max_share: float) -> bool:
    counts = np.bincount(ids[ids != IGNORED])
    return max_share >= 1 or bool(np.count_nonzero(counts) > 1 and counts.max() < max_share * counts.sum())
