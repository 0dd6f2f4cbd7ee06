"""One frozen feature vector an image, in bounded memory."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32, UInt8
from rich.progress import Progress

from croc_jax.data.labeled_images import ClassBatch, ClassificationSplit
from croc_jax.data.photometric import normalize
from croc_jax.evaluation.features import MemoryBudget, allocate
from croc_jax.models import VisionTransformer, patch_grid

FEATURES = ("cls", "mean", "cls_mean")

PoolFn = Callable[[Any, UInt8[Array | np.ndarray, "b H W 3"]], Float[Array, "b d"]]


class ImageFeatures(NamedTuple):
    """Frozen features of a whole split.

    Attributes:
        features: float32; an array, or a memory-mapped temporary file.
        labels: the class of each image.
    """

    features: Float[np.ndarray, "n d"]
    labels: Int32[np.ndarray, " n"]


def check_input(feature: str, resize: int, image_size: int) -> None:
    """Raises ValueError, naming the field and the value, for features that cannot be made."""
    if feature not in FEATURES:
        raise ValueError(f"feature={feature!r}: choose one of {', '.join(FEATURES)}")
    if not 0 < image_size <= resize:
        raise ValueError(f"image_size={image_size}, resize={resize}: the crop must lie within the resized image")


def make_pool_fn(backbone: VisionTransformer, feature: str, *, image_size: int) -> PoolFn:
    """Returns a jitted function of (params, images uint8) that gives one vector an image.

    Args:
        backbone: the module; it sees ImageNet-normalized images.
        feature: "cls" (the normalized [CLS] token), "mean" (of the normalized patch tokens) or
            "cls_mean" (both, one after the other; DINO's `avgpool_patchtokens`).
        image_size: of the square images that it will see.

    Raises:
        ValueError: for another feature, or if whole patches do not tile the images.
    """
    check_input(feature, image_size, image_size)
    try:
        patch_grid((image_size, image_size), backbone.patch_size)
    except ValueError as error:
        raise ValueError(f"image_size={image_size}: {error}") from error

    @jax.jit
    def pool(params: Any, images: UInt8[Array | np.ndarray, "b H W 3"]) -> Float[Array, "b d"]:
        tokens: Any = backbone.apply({"params": params}, normalize(jnp.asarray(images)))
        parts = {"cls": tokens.cls, "mean": jnp.mean(tokens.patches, axis=1)}
        return jnp.concatenate([parts[name] for name in feature.split("_")], axis=-1)

    return pool


def collect_features(
    pool_fn: PoolFn,
    params: Any,
    split: ClassificationSplit,
    *,
    resize: int,
    image_size: int,
    budget: MemoryBudget,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> ImageFeatures:
    """Encodes a whole split; on disk if its features are larger than the budget.

    Args:
        pool_fn: see `make_pool_fn`; all splits share its one compilation.
        params: of the backbone.
        split: the images.
        resize: see `ClassificationSplit.load`.
        image_size: see `ClassificationSplit.load`.
        budget: of memory.
        folder: for the temporary file; by default the system's.
        progress: shows the batches.

    Raises:
        LabeledDataError: for an image that cannot be read.
    """
    features, labels, start = np.zeros((0, 0), np.float32), [], 0
    sizes = {"resize": resize, "image_size": image_size}
    batches: Iterable[ClassBatch] = split.batches(budget.batch_size, num_threads=budget.num_threads, **sizes)
    if progress is not None:
        total = -(-len(split) // budget.batch_size)
        batches = progress.track(batches, total=total, description=f"features of {split.name}")
    for batch in batches:
        pooled = np.asarray(pool_fn(params, batch.images))[: len(batch.labels)]
        if not start:
            features = allocate((len(split), pooled.shape[1]), budget, folder, dtype=np.float32)
        features[start : start + len(pooled)] = pooled
        labels.append(batch.labels)
        start += len(pooled)
    return ImageFeatures(features, np.concatenate(labels))
