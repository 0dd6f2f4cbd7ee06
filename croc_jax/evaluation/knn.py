"""k-NN classification: the nearest training images vote, weighted by similarity, as in DINO's eval_knn."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from croc_jax.evaluation.datasets import ClassSplits, count_classified, describe_classes, open_class_splits
from croc_jax.evaluation.features import FrozenFeatures, ImageFeatures, MemoryBudget
from croc_jax.evaluation.metrics import Ranks, class_ranks, top_accuracy
from croc_jax.evaluation.registry import Protocol, Result, Timer
from croc_jax.evaluation.search import QUERY_CHUNK, search_host
from croc_jax.evaluation.settings import PoolingConfig, check_positive


@dataclasses.dataclass(frozen=True, kw_only=True)
class KnnConfig(PoolingConfig):
    """Every setting of k-NN classification that moves the score; the defaults are DINO's.

    Attributes:
        neighbors: numbers of neighbors that vote, one score each; the first gives "top1" and "top5". At most the
            training images.
        temperature: temperature of the votes.
    """

    neighbors: tuple[int, ...] = (20, 10, 100, 200)
    temperature: float = 0.07

    def __post_init__(self) -> None:
        """Raises ValueError, naming the field and the value, for settings that cannot work."""
        super().__post_init__()
        if not self.neighbors or min(self.neighbors) < 1:
            raise ValueError(f"neighbors={self.neighbors}: name one or more numbers above 0")
        check_positive(self, "temperature")


def evaluate(features: FrozenFeatures, dataset: ClassSplits, config: KnnConfig, output: Path | None = None) -> Result:
    """Classifies each validation image by its nearest training images; see `Protocol` for the arguments."""
    timer, num_classes = Timer(), dataset.train.num_classes
    bank, queries = (features.collect_pooled(split, config) for split in dataset)
    timer.end("features")
    ranks = knn_ranks(bank, queries, config, num_classes=num_classes, device_gib=features.budget.device_gib)
    timer.end("neighbors")
    num_neighbors = min(config.neighbors[0], len(bank.labels))
    first = ranks[num_neighbors]
    scores = {"top1": top_accuracy(first.true, 1), "top5": top_accuracy(first.true, 5)}
    scores |= {f"top1_{count}_neighbors": top_accuracy(found.true, 1) for count, found in ranks.items()}
    scores |= {"num_neighbors": num_neighbors}
    scores |= count_classified(dataset, bank.labels, queries.labels, first.predicted)
    return Result(scores, describe_classes(dataset), dataset.val.root, timer.seconds)


def knn_ranks(
    bank: ImageFeatures,
    queries: ImageFeatures,
    config: KnnConfig,
    *,
    num_classes: int,
    device_gib: float = MemoryBudget.device_gib,
) -> dict[int, Ranks]:
    """Returns, for each number of neighbors, the rank of the true class of each query, and the class with most votes.

    Args:
        bank: images that vote; a number of neighbors beyond them becomes theirs.
        queries: images to classify.
        config: settings of the protocol.
        num_classes: classes of the data set; also the rank of a class without votes.
        device_gib: see `search_host`.
    """
    counts = sorted({min(count, len(bank.labels)) for count in config.neighbors})
    found = search_host((queries.features,), (bank.features,), count=counts[-1], device_gib=device_gib)
    parts: dict[int, list[Ranks]] = {count: [] for count in counts}
    for start in range(0, len(queries.labels), QUERY_CHUNK):
        part = slice(start, start + QUERY_CHUNK)
        votes, labels = bank.labels[found.indices[part]], queries.labels[part]
        for count in counts:
            similarities = found.similarities[part, :count]
            scores = vote(similarities, votes[:, :count], config.temperature, num_classes=num_classes)
            parts[count].append(Ranks(*map(np.asarray, _voted_ranks(scores, labels))))
    return {count: Ranks(*map(np.concatenate, zip(*found, strict=True))) for count, found in parts.items()}


@functools.partial(jax.jit, static_argnames="num_classes")
def vote(
    similarities: Float[Array, "q n"], labels: Int[Array, "q n"], temperature: float, *, num_classes: int
) -> Float[Array, "q k"]:
    """Returns the sum of exp(similarity / temperature) over the neighbors of each class.

    The neighbors come nearest first. The votes of a query are divided by the largest, which keeps them finite and
    their order.
    """
    weights = jnp.exp((similarities - similarities[:, :1]) / temperature)
    rows = jnp.arange(len(weights))[:, None]
    return jnp.zeros((len(weights), num_classes)).at[rows, labels].add(weights)


@jax.jit
def _voted_ranks(scores: Float[Array, "q k"], labels: Int[Array, " q"]) -> tuple[Array, Array]:
    true = jnp.take_along_axis(scores, labels[:, None], axis=1)[:, 0]
    return jnp.where(true > 0, class_ranks(scores, labels), scores.shape[1]), jnp.argmax(scores, axis=1)


PROTOCOL = Protocol(
    name="knn",
    title="Nearest neighbors",
    description="Each image gets the class that most of its nearest training images have; nothing is trained.",
    config=KnnConfig,
    open_dataset=open_class_splits,
    evaluate=evaluate,
    main_score="top1",
    score_labels={"top1": "top-1", "top5": "top-5"},
    conventions={
        "image_resize": "shorter side, bicubic, antialiased; center crop",
        "similarity": "cosine, float32",
        "weight": "exp(similarity / temperature)",
        "ties": "the lower class; a class without votes is never among the top five",
        "neighbors": "at most the training images",
    },
)
