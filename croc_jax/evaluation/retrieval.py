"""Dense nearest-neighbor retrieval: patches get the labels of the most similar patches of other images."""

import dataclasses
import functools
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from croc_jax.data.labeled.segmentation import IGNORED, SegmentationSplit
from croc_jax.evaluation.examples import Gallery
from croc_jax.evaluation.features import FrozenFeatures
from croc_jax.evaluation.metrics import class_iou, mean_iou
from croc_jax.evaluation.segmentation import score_split

# Patches of the memory that queries are compared with at once.
_CHUNK = 16384


@dataclasses.dataclass(frozen=True, kw_only=True)
class RetrievalProtocol:
    """Every setting that moves the score.

    Attributes:
        image_size: height and width of the images, multiples of the patch size.
        score_size: of the labels that are scored; None for their own.
        memory_size: patches in the memory at most, as many of each image, drawn at random.
        num_neighbors: most similar patches that a patch gets its label from.
        temperature: of their similarity.
        seed: of the draw.
    """

    image_size: tuple[int, int] = (448, 448)
    score_size: tuple[int, int] | None = None
    memory_size: int = 1_024_000
    num_neighbors: int = 30
    temperature: float = 0.02
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises ValueError, naming the field and the value, for settings that cannot work."""
        for name in ("memory_size", "num_neighbors"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be 1 or more")
        if self.temperature <= 0:
            raise ValueError(f"temperature={self.temperature}: must be positive")


class Memory(NamedTuple):
    """Patches that labels come from.

    Attributes:
        tokens: of unit length.
        labels: the share of each class among the pixels of a patch that count.
    """

    tokens: Float[np.ndarray, "m d"]
    labels: Float[np.ndarray, "m k"]


class RetrievalScore(NamedTuple):
    """The result.

    Attributes:
        miou: mean IoU over the classes that occur, in percent.
        class_iou: of each class, in percent; NaN for a class in neither labels nor predictions.
        memory_patches: patches in the memory in fact.
        seconds: of each phase.
        gallery: a few images.
    """

    miou: float
    class_iou: Float[np.ndarray, " k"]
    memory_patches: int
    seconds: dict[str, float]
    gallery: Gallery


def evaluate_retrieval(
    features: FrozenFeatures, *, train: SegmentationSplit, val: SegmentationSplit, protocol: RetrievalProtocol
) -> RetrievalScore:
    """Labels one split with the patches of another, and scores it; nothing is trained.

    Args:
        features: of the backbone.
        train: labeled images for the memory.
        val: labeled images for the score.
        protocol: every setting that moves the score.

    Raises:
        ValueError: if whole patches do not tile the images, or there are fewer patches than
            images or neighbors.
        LabeledDataError: see `SegmentationSplit.load`.
    """
    clock = [time.perf_counter()]
    bank = jax.device_put(build_memory(features, train, protocol))
    clock.append(time.perf_counter())

    def score(tokens: Float[Array | np.ndarray, "b r c d"]) -> Float[Array, "b r c k"]:
        soft = retrieve(
            _unit(tokens.reshape(-1, tokens.shape[-1])),
            bank,
            num_neighbors=protocol.num_neighbors,
            temperature=protocol.temperature,
        )
        return soft.reshape(*tokens.shape[:3], -1)

    sizes = {"image_size": protocol.image_size, "label_size": protocol.score_size}
    confusion, gallery = score_split(score, features, val, **sizes)
    clock.append(time.perf_counter())
    seconds = {name: clock[i + 1] - clock[i] for i, name in enumerate(("memory", "scoring"))}
    return RetrievalScore(100 * mean_iou(confusion), 100 * class_iou(confusion), len(bank.tokens), seconds, gallery)


def build_memory(features: FrozenFeatures, train: SegmentationSplit, protocol: RetrievalProtocol) -> Memory:
    """Returns patches of a split, the same number of each image where it has as many with labels.

    Args:
        features: of the backbone.
        train: labeled images.
        protocol: for the sizes and the draw.

    Raises:
        ValueError: if whole patches do not tile the images, or there are fewer patches than
            images or neighbors.
    """
    grid, share = features.grid(protocol.image_size), protocol.memory_size // len(train)
    if not share:
        raise ValueError(f"memory_size={protocol.memory_size}: less than one patch for each of {len(train)} images")
    rng, most = np.random.default_rng(protocol.seed), min(share, grid[0] * grid[1]) * len(train)
    # Two arrays from the start: parts of a list would be there twice while they are joined.
    tokens, labels = (np.empty((most, dim), np.float32) for dim in (features.module.width, train.num_classes))
    count = 0
    for batch in features.token_batches(train, image_size=protocol.image_size, label_size=protocol.image_size):
        units = np.asarray(_unit(batch.tokens))
        for image, ids in zip(units, batch.labels, strict=False):
            soft = soften_labels(ids, grid, num_classes=train.num_classes)
            places = np.flatnonzero(soft.any(axis=1))
            places = rng.permutation(places)[:share]
            part = slice(count, count + len(places))
            tokens[part], labels[part] = image.reshape(-1, image.shape[-1])[places], soft[places]
            count = part.stop
    memory = Memory(tokens[:count], labels[:count])
    if len(memory.tokens) < protocol.num_neighbors:
        raise ValueError(
            f"num_neighbors={protocol.num_neighbors}: more than the {len(memory.tokens)} patches in memory"
        )
    return memory


def soften_labels(
    ids: UInt8[np.ndarray, "H W"], grid: tuple[int, int], *, num_classes: int
) -> Float[np.ndarray, "n k"]:
    """Returns the share of each class among the pixels of each patch that count; zeros if none does.

    Args:
        ids: of an image that whole patches tile.
        grid: rows and columns of patches.
        num_classes: k.
    """
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
    """Returns the labels of the most similar patches, weighted by a softmax of their similarities; exact.

    Args:
        queries: of unit length.
        memory: with that many patches or more.
        num_neighbors: how many of them count.
        temperature: of the softmax.
    """
    count = len(memory.tokens)
    size = min(_CHUNK, count)
    starts = np.arange(0, count, size)

    def look(best: tuple[Array, Array], start: Array) -> tuple[tuple[Array, Array], None]:
        # The last chunk begins early enough to be whole; what was seen before does not count again.
        begin = jnp.minimum(start, count - size)
        tokens = jax.lax.dynamic_slice_in_dim(memory.tokens, begin, size)
        similarity = jnp.matmul(queries, tokens.T, precision="highest")
        places = begin + jnp.arange(size)
        similarity = jnp.where(places >= start, similarity, -jnp.inf)
        found, order = jax.lax.top_k(similarity, min(num_neighbors, size))
        values = jnp.concatenate([best[0], found], axis=1)
        indices = jnp.concatenate([best[1], begin + order], axis=1)
        values, order = jax.lax.top_k(values, num_neighbors)
        return (values, jnp.take_along_axis(indices, order, axis=1)), None

    nothing = jnp.full((len(queries), num_neighbors), -jnp.inf), jnp.zeros((len(queries), num_neighbors), int)
    (values, indices), _ = jax.lax.scan(look, nothing, jnp.asarray(starts))
    weights = jax.nn.softmax(values / temperature, axis=1)
    return jnp.einsum("qn,qnk->qk", weights, memory.labels[indices], precision="highest")


@jax.jit
def _unit(tokens: Float[Array | np.ndarray, "*b d"]) -> Float[Array, "*b d"]:
    tokens = jnp.asarray(tokens, jnp.float32)
    return tokens / jnp.maximum(jnp.linalg.norm(tokens, axis=-1, keepdims=True), 1e-12)
