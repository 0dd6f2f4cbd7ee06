"""Dense nearest-neighbor retrieval: patches get the labels of the most similar patches of other images."""

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8, UInt16

from croc_jax.data.labeled.label_files import IGNORED, Ids
from croc_jax.data.labeled.segmentation import SegmentationSplit
from croc_jax.evaluation.datasets import PixelSplits, count_images, describe_pixels, open_pixel_splits
from croc_jax.evaluation.features import FrozenFeatures
from croc_jax.evaluation.metrics import IOU_SCORES, iou_scores
from croc_jax.evaluation.patch_memory import Memory, build_memory, collect_queries, count_pixels
from croc_jax.evaluation.pixel_scoring import predict_pixels, score_predictions
from croc_jax.evaluation.registry import LATER, Protocol, Result, Timer
from croc_jax.evaluation.retrieval_views import AUGMENTATIONS, INTERPOLATIONS, view_split
from croc_jax.evaluation.search import COSINE_SCALED, search_host
from croc_jax.evaluation.settings import check_choice, check_positive
from croc_jax.evaluation.visualize import save_examples

SAMPLING = ("uniform", "class_balanced")
IGNORED_CLASSES = ("left_out", "first", "own", "scored")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RetrievalConfig:
    """Every setting of dense retrieval that moves the score.

    Attributes:
        image_size: height and width of the images, multiples of the patch size.
        score_size: height and width of the labels that are scored; None, or zeros, for those of each label file.
        memory_size: most patches in the memory, the same number of each image, drawn at random.
        num_neighbors: most similar patches that a patch gets its label from.
        temperature: temperature of their similarity.
        seed: seed of the draws.
        whole_patches: whether `image_size` and `score_size` are rounded down to whole patches, so that one protocol
            suits patches of 14 and of 16 pixels.
        sampling: law of the draw of patches from an image: "uniform" among those with labels, or "class_balanced", by
            which those of rare classes come first, see `draw_patches`.
        memory_epochs: passes over the training images, each of which gives its part of the memory.
        augmentation: of the images in memory: "none", "crop" or "crop_jitter", see `retrieval_views`.
        interpolation: filter that resizes images, "bicubic" or "bilinear", both antialiased.
        ignored: what ignored pixels are in the memory: "left_out", of the "first" class (background, in VOC), or of a
            class of their "own", which can be predicted, and is then wrong. "scored" is "own", and a class of the
            labels that are scored, too.
    """

    image_size: tuple[int, int] = (448, 448)
    score_size: tuple[int, int] | None = None
    memory_size: int = 1_024_000
    num_neighbors: int = 30
    temperature: float = 0.02
    seed: int = 0
    whole_patches: bool = dataclasses.field(default=False, metadata=LATER)
    sampling: str = dataclasses.field(default="uniform", metadata=LATER)
    memory_epochs: int = dataclasses.field(default=1, metadata=LATER)
    augmentation: str = dataclasses.field(default="none", metadata=LATER)
    interpolation: str = dataclasses.field(default="bicubic", metadata=LATER)
    ignored: str = dataclasses.field(default="left_out", metadata=LATER)

    def __post_init__(self) -> None:
        """Raises ValueError, naming the field and the value, for settings that cannot work."""
        check_positive(self, "memory_size", "num_neighbors", "temperature", "memory_epochs")
        for name, least in (("image_size", 1), ("score_size", 0)):
            size = getattr(self, name)
            if size is not None and not (
                len(size) == 2 and all(length is not None and length >= least for length in size)
            ):
                raise ValueError(f"{name}={size}: give height and width in pixels")
        check_choice(self, "sampling", SAMPLING)
        check_choice(self, "augmentation", AUGMENTATIONS)
        check_choice(self, "interpolation", INTERPOLATIONS)
        check_choice(self, "ignored", IGNORED_CLASSES)
        if self.memory_epochs > 1 and self.augmentation == "none":
            raise ValueError(f"memory_epochs={self.memory_epochs}: without augmentation, all passes are the same")


def evaluate(
    features: FrozenFeatures, dataset: PixelSplits, config: RetrievalConfig, output: Path | None = None
) -> Result:
    """Labels one split with the patches of another, and scores it; see `Protocol` for the arguments."""
    train, val = dataset
    config = fit_config(config, train, features)
    names = val.class_names + (("ignored",) if config.ignored in ("own", "scored") else ())
    timer = Timer()
    memory = build_retrieval_memory(features, train, config)
    timer.end("memory")
    view = view_split(val, interpolation=config.interpolation)
    grid, queries = features.grid(config.image_size), collect_queries(features, view, image_size=config.image_size)
    neighbors = search_host(
        queries,
        memory.tokens,
        count=config.num_neighbors,
        device_gib=features.budget.device_gib,
        metric=COSINE_SCALED,
        allocate_fn=features.allocate,
        progress=features.progress,
    )
    timer.end("neighbors")

    def soft_labels() -> Iterator[tuple[Float[np.ndarray, "b r c k"], list[Ids]]]:
        size, patches = features.budget.batch_size, grid[0] * grid[1]
        for number, labels in enumerate(features.label_batches(val, config.score_size)):
            soft = np.zeros((size, *grid, len(names)), np.float32)
            for place in range(len(labels)):
                # One image at a time: the labels of all neighbors of a batch can be gigabytes.
                start = (number * size + place) * patches
                similarities, indices = (array[start : start + patches] for array in neighbors)
                found = vote(similarities, memory.labels[indices], temperature=config.temperature)
                soft[place] = np.asarray(found).reshape(*grid, -1)
            yield soft, [_own_class(ids, val) for ids in labels] if config.ignored == "scored" else labels

    pairs = predict_pixels(soft_labels())
    sizes = {"image_size": config.image_size, "pixels": features.module.pixels, "num_classes": len(names)}
    confusion, examples = score_predictions(pairs, view, **sizes)
    timer.end("scoring")
    save_examples(examples, names, output)
    scores = count_images(dataset) | iou_scores(confusion, names)
    settings = {"memory_patches": len(memory.labels)}
    if config.whole_patches:
        settings |= {"rounded_image_size": config.image_size, "rounded_score_size": config.score_size}
    return Result(scores, describe_pixels(val, train), val.root, timer.seconds, settings, describe_changes(config))


def fit_config(config: RetrievalConfig, train: SegmentationSplit, features: FrozenFeatures) -> RetrievalConfig:
    """Returns the settings for a backbone and a data set.

    Raises:
        ValueError: if whole patches do not tile the images, or ignored pixels cannot be what the settings say.
    """
    if config.ignored == "first" and train.kind == "ade20k":
        raise ValueError(
            f"ignored='first': the first class of ade20k is {train.class_names[0]}; published scores give ignored "
            "pixels a class of their own: choose 'own' (retrieval.py:hummingbird_ade20k) or 'scored' (:dip_ade20k)"
        )
    if config.ignored in ("own", "scored") and train.num_classes >= IGNORED:
        raise ValueError(f"ignored={config.ignored!r}: {train.num_classes} classes leave no id for another one")
    if config.score_size and not any(config.score_size):
        config = dataclasses.replace(config, score_size=None)
    if config.whole_patches:
        side = features.module.patch_size
        for name in ("image_size", "score_size"):
            if size := getattr(config, name):
                rounded = tuple(length // side * side for length in size)
                if not min(rounded):
                    raise ValueError(f"{name}={size}: less than one patch of {side} pixels")
                config = dataclasses.replace(config, **{name: rounded})
    features.grid(config.image_size)
    return config


def describe_changes(config: RetrievalConfig) -> dict[str, str]:
    """Returns the conventions of the protocol that do not hold with these settings."""
    changed = {"image_resize": "bilinear, antialiased"} if config.interpolation == "bilinear" else {}
    if (config.sampling, config.augmentation) != ("uniform", "none"):
        changed["memory"] = "as many patches of each image and pass, drawn among those with labels"
    return changed


def build_retrieval_memory(features: FrozenFeatures, train: SegmentationSplit, config: RetrievalConfig) -> Memory:
    """Returns patches of a split, the same number of each image where it has as many with labels.

    Labels are numbers of pixels of each class.

    Raises:
        ValueError: if whole patches do not tile the images, or there are fewer patches than images or neighbors.
    """
    epochs, grid = config.memory_epochs, features.grid(config.image_size)
    share, rng = config.memory_size // (len(train) * epochs), np.random.default_rng(config.seed)
    if not share:
        times = f" in {epochs} passes" if epochs > 1 else ""
        raise ValueError(
            f"memory_size={config.memory_size}: less than one patch for each of {len(train)} images{times}"
        )
    width = train.num_classes + (config.ignored in ("own", "scored"))

    def choose(ids: UInt8[np.ndarray, "n p"]) -> tuple[np.ndarray, np.ndarray]:
        if config.ignored != "left_out":
            ids = np.where(ids == IGNORED, 0 if config.ignored == "first" else train.num_classes, ids)
        counts = count_pixels(ids, num_classes=width)
        places = draw_patches(counts, share, rng, sampling=config.sampling)
        return places, counts[places]

    view = functools.partial(view_split, train, interpolation=config.interpolation, augmentation=config.augmentation)
    memory = build_memory(
        features,
        [view(draw=(config.seed, epoch)) for epoch in range(epochs)],
        choose,
        image_size=config.image_size,
        most=min(share, grid[0] * grid[1]),
        label_width=width,
        label_dtype=np.uint16,
    )
    if len(memory.labels) < config.num_neighbors:
        raise ValueError(f"num_neighbors={config.num_neighbors}: more than the {len(memory.labels)} patches in memory")
    return memory


def draw_patches(
    counts: UInt16[np.ndarray, "n k"], most: int, rng: np.random.Generator, *, sampling: str
) -> Int[np.ndarray, " k"]:
    """Returns the patches of an image that the memory keeps, at most `most` of those with labels.

    With "class_balanced", patches come in the order of u * (sum over their classes of the number of patches that hold
    the class), each with its own u, uniform from 0 to 1 (`sample_features` of open-hummingbird-eval): those of classes
    that are rare in the image are likely to be among the first.
    """
    found = np.flatnonzero(counts.any(axis=1))
    if sampling == "uniform":
        return rng.permutation(found)[:most]
    holds = counts[found] > 0
    return found[np.argsort(rng.random(len(found)) * (holds @ holds.sum(axis=0)), kind="stable")[:most]]


@functools.partial(jax.jit, static_argnames="temperature")
def vote(
    similarities: Float[Array, "q n"], counts: UInt16[Array, "q n k"], *, temperature: float
) -> Float[Array, "q k"]:
    """Returns the shares of classes in the most similar patches, weighted by a softmax of their similarities.

    Args:
        similarities: similarity of each query to its neighbors.
        counts: pixels of each class in the neighbors.
        temperature: temperature of the softmax.
    """
    weights = jax.nn.softmax(similarities / temperature, axis=1)
    shares = counts / jnp.maximum(counts.sum(axis=2, keepdims=True, dtype=jnp.float32), 1)
    return jnp.einsum("qn,qnk->qk", weights, shares, precision=jax.lax.Precision.HIGHEST)


def _own_class(ids: Ids, split: SegmentationSplit) -> Ids:
    return np.where(ids == IGNORED, np.uint8(split.num_classes), ids)


PROTOCOL = Protocol(
    name="retrieval",
    title="Retrieval of labels",
    description=(
        "Nothing is trained: each patch gets the labels of the most similar patches among labeled training images."
    ),
    config=RetrievalConfig,
    open_dataset=open_pixel_splits,
    evaluate=evaluate,
    **IOU_SCORES,
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
