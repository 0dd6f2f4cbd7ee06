"""k-NN classification: the nearest training images vote, weighted by similarity, as in DINO's eval_knn."""

import dataclasses
import functools
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from croc_jax.data.labeled.classes import ClassificationSplit
from croc_jax.evaluation.accuracy import class_ranks, top_accuracy
from croc_jax.evaluation.features import FrozenFeatures, ImageFeatures, check_pooling

# Similarities of this many queries and bank entries are on the device at once: 64 MiB.
QUERY_CHUNK, BANK_CHUNK = 1024, 16384


@dataclasses.dataclass(frozen=True, kw_only=True)
class KnnProtocol:
    """Every setting of the protocol that moves the score; the defaults are DINO's.

    Attributes:
        feature: "cls", "mean" or "cls_mean", see `FrozenFeatures.collect_pooled`.
        resize: pixels of the shorter side of an image.
        image_size: of the square in its middle.
        neighbors: how many vote, one score each, the first of them foremost; at most the training images.
        temperature: of the votes.
    """

    feature: str = "cls"
    resize: int = 256
    image_size: int = 224
    neighbors: tuple[int, ...] = (20, 10, 100, 200)
    temperature: float = 0.07

    def __post_init__(self) -> None:
        """Raises ValueError, naming the field and the value, for settings that cannot work."""
        check_pooling(self.feature, self.resize, self.image_size)
        if not self.neighbors or min(self.neighbors) < 1:
            raise ValueError(f"neighbors={self.neighbors}: name one or more numbers above 0")
        if not self.temperature > 0:
            raise ValueError(f"temperature={self.temperature}: must be positive")


class KnnScore(NamedTuple):
    """The result of k-NN classification, in percent.

    Attributes:
        top1: of each number of neighbors.
        top5: alike.
        seconds: of each phase.
    """

    top1: dict[int, float]
    top5: dict[int, float]
    seconds: dict[str, float]


class Neighbors(NamedTuple):
    """The nearest entries of a bank, nearest first.

    Attributes:
        similarities: cosines; -inf where the bank has fewer entries.
        labels: their classes.
    """

    similarities: Float[Array, "q k"]
    labels: Int[Array, "q k"]


def evaluate_knn(
    features: FrozenFeatures, *, train: ClassificationSplit, val: ClassificationSplit, protocol: KnnProtocol
) -> KnnScore:
    """Classifies each validation image by its nearest training images.

    Args:
        features: of the backbone.
        train: images that vote.
        val: images for the score.
        protocol: every setting that moves the score.

    Raises:
        ValueError: if whole patches do not tile the protocol's images.
        LabeledDataError: for an image that cannot be read.
    """
    sizes = {"resize": protocol.resize, "image_size": protocol.image_size}
    start = time.perf_counter()
    bank, queries = (features.collect_pooled(split, pooling=protocol.feature, **sizes) for split in (train, val))
    middle = time.perf_counter()
    ranks = knn_ranks(
        bank,
        queries,
        neighbors=protocol.neighbors,
        temperature=protocol.temperature,
        num_classes=train.num_classes,
    )
    seconds = {"features": middle - start, "neighbors": time.perf_counter() - middle}
    top1, top5 = ({count: top_accuracy(of, top) for count, of in ranks.items()} for top in (1, 5))
    return KnnScore(top1, top5, seconds)


def knn_ranks(
    bank: ImageFeatures, queries: ImageFeatures, *, neighbors: Sequence[int], temperature: float, num_classes: int
) -> dict[int, Int[np.ndarray, " q"]]:
    """Returns, for each number of neighbors, where the true class of each query ranks.

    Args:
        bank: images that vote.
        queries: images to classify.
        neighbors: how many vote; a number beyond the bank becomes its size.
        temperature: of the votes.
        num_classes: of the data set; also the rank of a class without votes.
    """
    counts = sorted({min(count, len(bank.labels)) for count in neighbors})
    ranks: dict[int, list[np.ndarray]] = {count: [] for count in counts}
    found = nearest_neighbors(queries.features, bank, counts[-1])
    for start, nearest in zip(range(0, len(queries.labels), QUERY_CHUNK), found, strict=True):
        labels = queries.labels[start : start + QUERY_CHUNK]
        padded = np.pad(labels, (0, QUERY_CHUNK - len(labels)))
        for count in counts:
            prefix = Neighbors(nearest.similarities[:, :count], nearest.labels[:, :count])
            scores = vote(prefix, temperature, num_classes=num_classes)
            ranks[count].append(np.asarray(_voted_ranks(scores, padded))[: len(labels)])
    return {count: np.concatenate(parts) for count, parts in ranks.items()}


def nearest_neighbors(queries: Float[np.ndarray, "q d"], bank: ImageFeatures, count: int) -> Iterator[Neighbors]:
    """Yields the nearest entries of the bank, for a chunk of queries at a time.

    The last chunk is filled up with zeros. Each chunk of the bank goes to the device once, and
    only the best so far are kept of it.

    Args:
        queries: features, not normalized.
        bank: features alike, and their classes.
        count: how many entries to find for each query.
    """
    size = -(-len(queries) // QUERY_CHUNK) * QUERY_CHUNK
    padded = np.zeros((size, queries.shape[1]), np.float32)
    padded[: len(queries)] = queries
    chunks = jnp.asarray(padded.reshape(-1, QUERY_CHUNK, queries.shape[1]))
    best = Neighbors(jnp.full((*chunks.shape[:2], count), -jnp.inf), jnp.zeros((*chunks.shape[:2], count), jnp.int32))
    chunk_size = min(BANK_CHUNK, len(bank.labels))
    for start in range(0, len(bank.labels), chunk_size):
        part = slice(start, start + chunk_size)
        missing = chunk_size - len(bank.labels[part])
        features = np.pad(bank.features[part], ((0, missing), (0, 0)))
        best = _merge(best, chunks, features, np.pad(bank.labels[part], (0, missing)), chunk_size - missing)
        # Or all chunks would wait in memory.
        jax.block_until_ready(best)
    return (Neighbors(*parts) for parts in zip(*best, strict=True))


@functools.partial(jax.jit, donate_argnums=0)
def _merge(best: Neighbors, queries: Array, features: Array, labels: Array, real: Array) -> Neighbors:
    """Returns the best of those so far and of a chunk of the bank whose first `real` rows count."""
    bank = _normalize(features)

    def merge_one(parts: tuple[Neighbors, Array]) -> Neighbors:
        known, chunk = parts
        similarities = jnp.matmul(_normalize(chunk), bank.T, precision=jax.lax.Precision.HIGHEST)
        similarities = jnp.where(jnp.arange(len(labels)) < real, similarities, -jnp.inf)
        joined = jnp.concatenate([known.similarities, similarities], axis=1)
        joined_labels = jnp.concatenate([known.labels, jnp.broadcast_to(labels, (len(chunk), len(labels)))], axis=1)
        top, places = jax.lax.top_k(joined, known.similarities.shape[1])
        return Neighbors(top, jnp.take_along_axis(joined_labels, places, axis=1))

    return jax.lax.map(merge_one, (best, queries))


def _normalize(features: Float[Array, "n d"]) -> Float[Array, "n d"]:
    norms = jnp.linalg.norm(features, axis=-1, keepdims=True)
    return features / jnp.maximum(norms, 1e-12)


@functools.partial(jax.jit, static_argnames="num_classes")
def vote(nearest: Neighbors, temperature: float, *, num_classes: int) -> Float[Array, "q k"]:
    """Returns the sum of exp(similarity / temperature) over the neighbors of each class.

    The votes of a query are divided by the largest, which keeps them finite and their order.

    Args:
        nearest: neighbors, nearest first.
        temperature: the smaller, the more the nearest count.
        num_classes: columns of the result.
    """
    weights = jnp.exp((nearest.similarities - nearest.similarities[:, :1]) / temperature)
    rows = jnp.arange(len(weights))[:, None]
    return jnp.zeros((len(weights), num_classes)).at[rows, nearest.labels].add(weights)


@jax.jit
def _voted_ranks(scores: Float[Array, "q k"], labels: Int[Array, " q"]) -> Int[Array, " q"]:
    true = jnp.take_along_axis(scores, labels[:, None], axis=1)[:, 0]
    return jnp.where(true > 0, class_ranks(scores, labels), scores.shape[1])
