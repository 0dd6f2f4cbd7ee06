"""Dense nearest-neighbor retrieval: patches get the labels of the most similar patches of other images."""

import dataclasses
import functools
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from croc_jax.data.labeled.label_files import IGNORED
from croc_jax.data.labeled.segmentation import SegmentationSplit
from croc_jax.evaluation.datasets import PixelSplits, count_images, describe_pixels, open_pixel_splits
from croc_jax.evaluation.features import FrozenFeatures
from croc_jax.evaluation.metrics import iou_scores
from croc_jax.evaluation.pixel_scoring import score_split
from croc_jax.evaluation.registry import Protocol, Result, Timer
from croc_jax.evaluation.search import l2_normalize, nearest_neighbors
from croc_jax.evaluation.settings import check_positive
from croc_jax.evaluation.visualize import save_examples


@dataclasses.dataclass(frozen=True, kw_only=True)
class RetrievalConfig:
    """Every setting of dense retrieval that moves the score.

    Attributes:
        image_size: height and width of the images, multiples of the patch size.
        score_size: height and width of the labels that are scored; None for those of each label file.
        memory_size: most patches in the memory, the same number of each image, drawn at random.
        num_neighbors: most similar patches that a patch gets its label from.
        temperature: temperature of their similarity.
        seed: seed of the draw.
    """

    image_size: tuple[int, int] = (448, 448)
    score_size: tuple[int, int] | None = None
    memory_size: int = 1_024_000
    num_neighbors: int = 30
    temperature: float = 0.02
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises ValueError, naming the field and the value, for settings that cannot work."""
        check_positive(self, "memory_size", "num_neighbors", "temperature")


class Memory(NamedTuple):
    """Tokens of unit length, and the share of each class among the pixels of their patch that count."""

    tokens: Float[np.ndarray, "m d"]
    labels: Float[np.ndarray, "m k"]


def evaluate(
    features: FrozenFeatures, dataset: PixelSplits, config: RetrievalConfig, output: Path | None = None
) -> Result:
    """Labels one split with the patches of another, and scores it; see `Protocol` for the arguments."""
    train, val = dataset
    timer = Timer()
    memory = jax.device_put(build_memory(features, train, config))
    timer.end("memory")

    def score(tokens: Float[Array | np.ndarray, "b r c d"]) -> Float[Array, "b r c k"]:
        queries = l2_normalize(tokens.reshape(-1, tokens.shape[-1]))
        soft = retrieve(queries, memory, num_neighbors=config.num_neighbors, temperature=config.temperature)
        return soft.reshape(*tokens.shape[:3], -1)

    sizes = {"image_size": config.image_size, "label_size": config.score_size}
    confusion, examples = score_split(score, features, val, **sizes)
    timer.end("scoring")
    save_examples(examples, val.class_names, output)
    settings = {"memory_patches": len(memory.tokens)}
    scores = count_images(dataset) | iou_scores(confusion, val.class_names)
    return Result(scores, describe_pixels(val, train), val.root, timer.seconds, settings)


def build_memory(features: FrozenFeatures, train: SegmentationSplit, config: RetrievalConfig) -> Memory:
    """Returns patches of a split, the same number of each image where it has as many with labels.

    Raises:
        ValueError: if whole patches do not tile the images, or there are fewer patches than images or neighbors.
    """
    grid, share = features.grid(config.image_size), config.memory_size // len(train)
    if not share:
        raise ValueError(f"memory_size={config.memory_size}: less than one patch for each of {len(train)} images")
    rng, most = np.random.default_rng(config.seed), min(share, grid[0] * grid[1]) * len(train)
    # Allocated once: parts of a list would exist twice while they are joined.
    tokens, labels = (np.empty((most, dim), np.float32) for dim in (features.module.width, train.num_classes))
    count = 0
    for batch, labels_of_batch in features.token_batches(
        train, image_size=config.image_size, label_size=config.image_size
    ):
        for image, ids in zip(np.asarray(l2_normalize(batch)), labels_of_batch, strict=False):
            soft = soften_labels(ids, grid, num_classes=train.num_classes)
            places = rng.permutation(np.flatnonzero(soft.any(axis=1)))[:share]
            part = slice(count, count + len(places))
            tokens[part], labels[part] = image.reshape(-1, image.shape[-1])[places], soft[places]
            count = part.stop
    if count < config.num_neighbors:
        raise ValueError(f"num_neighbors={config.num_neighbors}: more than the {count} patches in memory")
    return Memory(tokens[:count], labels[:count])


def soften_labels(
    ids: UInt8[np.ndarray, "H W"], grid: tuple[int, int], *, num_classes: int
) -> Float[np.ndarray, "n k"]:
    """Returns the share of each class among the pixels of each patch that count; zeros if none does."""
    rows, columns = grid
    patches = ids.reshape(rows, ids.shape[0] // rows, columns, ids.shape[1] // columns).swapaxes(1, 2)
    patches = patches.reshape(rows * columns, -1).astype(np.int64)
    counted = patches != IGNORED
    index = np.arange(len(patches))[:, None] * num_classes + np.where(counted, patches, 0)
    counts = np.bincount(index[counted], minlength=len(patches) * num_classes).reshape(-1, num_classes)
    return (counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)).astype(np.float32)


@functools.partial(jax.jit, static_argnames=("num_neighbors", "temperature"))
def retrieve(
    queries: Float[Array, "q d"], memory: Memory, *, num_neighbors: int, temperature: float
) -> Float[Array, "q k"]:
    """Returns the labels of the most similar patches, weighted by a softmax of their similarities.

    Args:
        queries: tokens of unit length.
        memory: patches, at least `num_neighbors`.
        num_neighbors: patches that count.
        temperature: temperature of the softmax.
    """
    similarities, indices = nearest_neighbors(queries, memory.tokens, count=num_neighbors)
    weights = jax.nn.softmax(similarities / temperature, axis=1)
    return jnp.einsum("qn,qnk->qk", weights, memory.labels[indices], precision=jax.lax.Precision.HIGHEST)


PROTOCOL = Protocol(
    name="retrieval",
    title="Retrieval of labels",
    description=(
        "Nothing is trained: each patch gets the labels of the most similar patches among labeled training images."
    ),
    config=RetrievalConfig,
    open_dataset=open_pixel_splits,
    evaluate=evaluate,
    main_score="miou",
    score_labels={"miou": "mIoU"},
    class_scores="class_iou",
    class_label="Intersection over union (%)",
    conventions={
        "tokens": "patch tokens after the final norm, float16, then unit length in float32",
        "image_resize": "bicubic, antialiased",
        "memory": "as many patches of each image, drawn evenly among those with labels; no augmentation",
        "similarity": "cosine, exact search",
        "upsampling": "bilinear soft labels, half-pixel centers",
        "ignored_label": 255,
        "miou": "percent, over the whole split, mean of the classes in labels or predictions",
    },
)
