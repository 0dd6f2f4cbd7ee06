"""k-NN segmentation as CAPI reports it: each pixel of a patch gets the class that most of its neighbors have there."""

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from croc_jax.data.labeled.label_files import IGNORED, Ids
from croc_jax.data.labeled.segmentation import SegmentationSplit
from croc_jax.evaluation.datasets import PixelSplits, count_images, describe_pixels, open_pixel_splits
from croc_jax.evaluation.features import FrozenFeatures
from croc_jax.evaluation.metrics import IOU_SCORES, confusion_matrix, iou_scores, mean_iou
from croc_jax.evaluation.patch_memory import Memory, build_memory, collect_queries, count_pixels, join_patches
from croc_jax.evaluation.pixel_scoring import score_predictions
from croc_jax.evaluation.registry import Protocol, Result, Timer
from croc_jax.evaluation.search import Metric, Neighbors, search_host
from croc_jax.evaluation.visualize import save_examples
from croc_jax.evaluation.whitening import fit_scale
from croc_jax.unit import unit

DISTANCES = ("cosine", "l2")
# Rows of the memory whose classes are counted at once.
_ROWS = 16384
# Far below any similarity, and finite, so that products in parts stay numbers.
_NEVER = -1e30


@dataclasses.dataclass(frozen=True, kw_only=True)
class KnnSegmentationConfig:
    """Every setting of k-NN segmentation that moves the score; the defaults are CAPI's.

    Attributes:
        image_size: height and width of images and labels, multiples of the patch size; labels are scored at it.
        neighbors: numbers of neighbors to choose from.
        distances: distances to choose from, of "cosine" and "l2".
        validation_share: share of the training images that the choice is made on, by mean IoU; they vote afterwards.
        standardize: whether each feature gets mean 0 and deviation 1 over the patches of the other training images.
        seed: seed of the draw of those images.
    """

    image_size: tuple[int, int] = (224, 224)
    neighbors: tuple[int, ...] = (1, 3, 10, 30)
    distances: tuple[str, ...] = DISTANCES
    validation_share: float = 0.1
    standardize: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises ValueError, naming the field and the value, for settings that cannot work."""
        if not self.neighbors or min(self.neighbors) < 1:
            raise ValueError(f"neighbors={self.neighbors}: name one or more numbers above 0")
        if not self.distances or not set(self.distances) <= set(DISTANCES):
            raise ValueError(f"distances={self.distances}: name one or more of {', '.join(DISTANCES)}")
        if not 0 <= self.validation_share < 1:
            raise ValueError(f"validation_share={self.validation_share}: a share from 0 to below 1")

    @property
    def choices(self) -> list[tuple[int, str]]:
        """All pairs of a number of neighbors and a distance."""
        return list(itertools.product(self.neighbors, self.distances))


def evaluate(
    features: FrozenFeatures, dataset: PixelSplits, config: KnnSegmentationConfig, output: Path | None = None
) -> Result:
    """Labels one split with the patches of another, and scores it; see `Protocol` for the arguments."""
    train, val = dataset
    if train.num_classes >= IGNORED:
        raise ValueError(f"{train.num_classes} classes leave no id for ignored pixels, which vote as a class")
    timer, names = Timer(), (*val.class_names, "ignored")
    rest, chosen = draw_selection(train, config)
    grid = features.grid(config.image_size)
    per_image, num_classes = grid[0] * grid[1], len(names)

    def choose(ids: UInt8[np.ndarray, "n p"]) -> tuple[np.ndarray, np.ndarray]:
        return np.arange(len(ids)), np.where(ids == IGNORED, np.uint8(train.num_classes), ids)

    memory = build_memory(
        features,
        [split for split in (rest, chosen) if len(split)],
        choose,
        image_size=config.image_size,
        most=per_image,
        label_width=config.image_size[0] * config.image_size[1] // per_image,
        label_dtype=np.uint8,
    )
    searcher = _Searcher(
        features, memory, config, num_classes=num_classes, num_fitted=len(rest) * per_image, per_image=per_image
    )
    timer.end("memory")
    selection = searcher.select()
    num_neighbors, distance = max(selection, key=lambda choice: selection[choice])
    timer.end("selection")
    queries = collect_queries(features, val, image_size=config.image_size)
    found = searcher.search(queries.vectors, count=num_neighbors, distance=distance)
    timer.end("neighbors")

    def predictions() -> Iterator[tuple[Ids, Ids]]:
        start = 0
        for batch in features.label_batches(val, config.image_size):
            for labels in batch:
                voted = searcher.vote(found.indices[start : start + per_image])
                yield labels, join_patches(voted, config.image_size, grid)
                start += per_image

    sizes = {"image_size": config.image_size, "pixels": features.module.pixels, "num_classes": num_classes}
    confusion, examples = score_predictions(predictions(), val, **sizes)
    timer.end("scoring")
    save_examples(examples, names, output)
    scores = count_images(dataset) | {"num_neighbors": num_neighbors, "distance": distance}
    if len(selection) > 1:
        scores["selection_miou"] = {f"{of} {count}": 100 * miou for (count, of), miou in selection.items()}
    scores |= iou_scores(confusion, names)
    return Result(scores, describe_pixels(val, train), val.root, timer.seconds, {"memory_patches": len(memory.labels)})


def draw_selection(
    train: SegmentationSplit, config: KnnSegmentationConfig
) -> tuple[SegmentationSplit, SegmentationSplit]:
    """Returns the training images that vote in the choice of settings, and those that it is made on.

    Raises:
        ValueError: if there is something to choose, and no image to choose by.
    """
    count = int(len(train) * config.validation_share) if len(config.choices) > 1 else 0
    if not count and len(config.choices) > 1:
        raise ValueError(
            f"validation_share={config.validation_share}: no image of {len(train)} to choose neighbors and "
            "distances by; raise it, or name one of each"
        )
    order = np.random.default_rng(config.seed).permutation(len(train))
    chosen, rest = order[:count], order[count:]

    def part(indices: np.ndarray, what: str) -> SegmentationSplit:
        pairs = tuple(train.pairs[index] for index in indices)
        return dataclasses.replace(train, pairs=pairs, name=f"{train.name}, {what}")

    return part(rest, "to vote"), part(chosen, "to choose by")


class _Searcher:
    """Finds neighbors among the patches of a memory, the first of which are those to fit on."""

    def __init__(
        self,
        features: FrozenFeatures,
        memory: Memory,
        config: KnnSegmentationConfig,
        *,
        num_classes: int,
        num_fitted: int,
        per_image: int,
    ) -> None:
        self._features, self._memory, self._config = features, memory, config
        self._num_classes, self._num_fitted = num_classes, num_fitted
        self._votes = np.concatenate(
            [
                majority(memory.labels[start : start + _ROWS, None], num_classes=num_classes)[:, 0] != num_classes - 1
                for start in range(0, len(memory.labels), _ROWS)
            ]
        )
        width = memory.tokens.vectors.shape[1]
        self._mean, self._scale = jnp.zeros(width), jnp.ones(width)
        if config.standardize:
            fitted = memory.tokens.vectors[:num_fitted].reshape(-1, per_image, width)
            self._mean, transform = fit_scale(fitted, "standardize")
            self._scale = jnp.diagonal(transform)

    def select(self) -> dict[tuple[int, str], float]:
        """Returns the mean IoU of each choice on the patches that were not fitted on; of a single choice, NaN."""
        choices, fitted = self._config.choices, self._num_fitted
        if len(choices) == 1:
            return {choices[0]: float("nan")}
        found, most = {}, max(self._config.neighbors)
        labels, queries = self._memory.labels[fitted:], self._memory.tokens.vectors[fitted:]
        for distance in self._config.distances:
            neighbors = self.search(queries, count=most, distance=distance, rows=fitted)
            for count in self._config.neighbors:
                confusion = np.zeros((self._num_classes, self._num_classes), np.int64)
                for start in range(0, len(labels), 256):
                    part = slice(start, start + 256)
                    ids = np.where(labels[part] == self._num_classes - 1, np.uint8(IGNORED), labels[part])
                    voted = self.vote(neighbors.indices[part, :count])
                    confusion += confusion_matrix(ids, voted, num_classes=self._num_classes)
                found[count, distance] = mean_iou(confusion)
        return {choice: found[choice] for choice in choices}

    def search(
        self, queries: Float[np.ndarray, "q d"], *, count: int, distance: str, rows: int | None = None
    ) -> Neighbors:
        """Returns the nearest of the first rows of the memory, of those that vote."""
        votes = self._votes[:rows]
        if votes.sum() < count:
            raise ValueError(f"neighbors={self._config.neighbors}: more than the {votes.sum()} labeled patches")
        return search_host(
            (queries,),
            (self._memory.tokens.vectors[:rows], votes),
            count=count,
            device_gib=self._features.budget.device_gib,
            metric=make_metric(distance, self._mean, self._scale),
            allocate_fn=self._features.allocate,
            progress=self._features.progress,
        )

    def vote(self, indices: Int[Array | np.ndarray, "q n"]) -> UInt8[np.ndarray, "q p"]:
        """Returns the class that most neighbors have at each pixel of a patch."""
        return majority(self._memory.labels[np.asarray(indices)].swapaxes(1, 2), num_classes=self._num_classes)


def majority(ids: UInt8[np.ndarray, "q p n"], *, num_classes: int) -> UInt8[np.ndarray, "q p"]:
    """Returns the id that occurs most often along the last axis; of several, the lowest."""
    counts = count_pixels(ids.reshape(-1, ids.shape[-1]), num_classes=num_classes)
    return counts.argmax(axis=1).astype(np.uint8).reshape(ids.shape[:-1])


def make_metric(distance: str, mean: Float[Array, " d"], scale: Float[Array, " d"]) -> Metric:
    """Returns vectors whose dot product is the cosine of standardized ones, or minus half their squared L2 distance.

    Of the latter, only what depends on the row of the bank. Rows that do not vote are far from everything.
    """

    def standardize(vectors: Float[Array, "m d"]) -> Float[Array, "m d"]:
        vectors = (vectors.astype(jnp.float32) - mean) * scale
        return unit(vectors) if distance == "cosine" else vectors

    @jax.jit
    def embed_queries(vectors: Float[Array, "q d"]) -> Float[Array, "q d+1"]:
        return jnp.pad(standardize(vectors), ((0, 0), (0, 1)), constant_values=1)

    @jax.jit
    def embed_bank(vectors: Float[Array, "m d"], votes: Array) -> Float[Array, "m d+1"]:
        rows = standardize(vectors)
        offset = 0.0 if distance == "cosine" else -0.5 * jnp.sum(rows**2, axis=1)
        return jnp.concatenate([rows, jnp.where(votes, offset, _NEVER)[:, None]], axis=1)

    return Metric(embed_queries, embed_bank)


PROTOCOL = Protocol(
    name="knn_segmentation",
    title="k-NN segmentation",
    description=(
        "Nothing is trained: each pixel of a patch gets the class that most of the nearest patches of labeled training "
        "images have at the same place."
    ),
    config=KnnSegmentationConfig,
    open_dataset=open_pixel_splits,
    evaluate=evaluate,
    **IOU_SCORES,
    conventions={
        "tokens": "patch tokens after the final norm, float16; standardized and compared in float32",
        "image_resize": "bicubic, antialiased",
        "label_resize": "nearest",
        "memory": "all patches of the training images but those in which ignored pixels are the most",
        "search": "exact; of equal neighbors, the earlier patch",
        "vote": "the most frequent class of the neighbors, pixel by pixel of a patch; of several, the lowest",
        "choice": "neighbors and distance by mIoU on the images set aside; then all images vote",
        "ignored_label": "255; a class of its own in votes, wrong where it wins, and not scored",
        "miou": "percent, over the whole split, mean of the classes in labels or predictions",
    },
)
