"""Unsupervised segmentation: the tokens of a data set fall into clusters, which are then given to classes."""

import dataclasses
import time
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from croc_jax.data.labeled.segmentation import IGNORED, SegmentationSplit
from croc_jax.evaluation.examples import Gallery, GalleryKeeper
from croc_jax.evaluation.features import FrozenFeatures
from croc_jax.evaluation.kmeans import KMeansConfig, assign_clusters, fit_kmeans
from croc_jax.evaluation.metrics import class_iou, confusion_matrix, match_clusters
from croc_jax.training.sharding import make_mesh

MATCHINGS = ("hungarian", "greedy")


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnsupervisedProtocol:
    """Every setting that moves the score; by default those of the paper's Table 3.

    Attributes:
        image_size: height and width of the images, multiples of the patch size.
        label_size: of the labels, and of the clusters that are compared with them.
        num_clusters: K; None for as many as classes.
        matching: "hungarian" gives each class one cluster, so that the mean IoU is largest;
            "greedy" gives each cluster the class of most of its pixels.
        l2_normalize: whether tokens get unit length first.
        seeds: of the k-means starts; the score is their mean.
        max_iterations: of k-means.
    """

    image_size: tuple[int, int] = (448, 448)
    label_size: tuple[int, int] = (100, 100)
    num_clusters: int | None = None
    matching: str = "hungarian"
    l2_normalize: bool = False
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    max_iterations: int = 100

    def __post_init__(self) -> None:
        """Raises ValueError, naming the field and the value, for settings that cannot work."""
        if self.matching not in MATCHINGS:
            raise ValueError(f"matching={self.matching!r}: choose one of {', '.join(MATCHINGS)}")
        if not self.seeds:
            raise ValueError("seeds=(): name one or more")


class UnsupervisedScore(NamedTuple):
    """The result, in percent.

    Attributes:
        miou: mean over the seeds.
        miou_deviation: standard deviation over the seeds (of the sample); NaN for one.
        seed_miou: of each seed.
        class_iou: of each class, of the first seed; NaN for a class that does not occur.
        inertia: of each seed.
        seconds: of each phase.
        gallery: a few images, with the classes of the first seed's clusters.
    """

    miou: float
    miou_deviation: float
    seed_miou: Float[np.ndarray, " s"]
    class_iou: Float[np.ndarray, " k"]
    inertia: Float[np.ndarray, " s"]
    seconds: dict[str, float]
    gallery: Gallery


def evaluate_unsupervised(
    features: FrozenFeatures, *, val: SegmentationSplit, protocol: UnsupervisedProtocol
) -> UnsupervisedScore:
    """Clusters all tokens of a split, and scores the clusters as a segmentation of it.

    Args:
        features: of the backbone.
        val: labeled images; the labels serve the matching and the score alone.
        protocol: every setting that moves the score.

    Raises:
        ValueError: if whole patches do not tile the images, or for fewer tokens than clusters.
        LabeledDataError: see `SegmentationSplit.load`.
    """
    num_clusters = protocol.num_clusters or val.num_classes
    if protocol.matching == "hungarian" and num_clusters < val.num_classes:
        raise ValueError(
            f"num_clusters={num_clusters}: one-to-one matching needs one for each of {val.num_classes} classes; "
            "choose more, or matching='greedy'"
        )
    clock = [time.perf_counter()]
    data = features.collect_tokens(val, image_size=protocol.image_size, label_size=protocol.label_size)
    tokens = data.tokens.reshape(-1, data.tokens.shape[-1])
    clock.append(time.perf_counter())
    config = KMeansConfig(
        num_clusters=num_clusters, max_iterations=protocol.max_iterations, unit_length=protocol.l2_normalize
    )
    scores, inertia, first, progress = [], [], None, features.progress
    task = progress.add_task("k-means", total=len(protocol.seeds)) if progress else None
    for seed in protocol.seeds:
        fit = fit_kmeans(tokens, config, seed=seed, mesh=make_mesh() if jax.device_count() > 1 else None)
        found = assign_clusters(tokens, fit.centroids, unit_length=protocol.l2_normalize)
        maps = found.reshape(data.tokens.shape[:3])
        classes, per_class = name_clusters(maps, data.labels, val.num_classes, protocol)
        scores.append(float(np.nanmean(per_class)))
        inertia.append(fit.inertia)
        first = first or (maps, classes, per_class)
        if progress and task is not None:
            progress.advance(task)
    clock.append(time.perf_counter())
    assert first is not None
    gallery = _gallery(val, *first[:2], protocol, data.labels)
    clock.append(time.perf_counter())
    percent = 100 * np.array(scores)
    deviation = float(np.std(percent, ddof=1)) if len(percent) > 1 else float("nan")
    seconds = {name: clock[i + 1] - clock[i] for i, name in enumerate(("features", "clustering", "pictures"))}
    return UnsupervisedScore(
        float(percent.mean()), deviation, percent, 100 * first[2], np.array(inertia), seconds, gallery
    )


def name_clusters(
    maps: Int[np.ndarray, "n r c"],
    labels: Int[np.ndarray, "n h w"],
    num_classes: int,
    protocol: UnsupervisedProtocol,
) -> tuple[Int[np.ndarray, " K"], Float[np.ndarray, " k"]]:
    """Gives clusters to classes; returns the class of each cluster, -1 for none, and the IoU of each class.

    Args:
        maps: the cluster of each patch.
        labels: of the same images.
        num_classes: of the labels.
        protocol: for K and the matching.
    """
    num_clusters = protocol.num_clusters or num_classes
    size, confusion = max(num_clusters, num_classes), 0
    for patches, label in zip(maps, labels, strict=True):
        enlarged = _enlarge(patches, label.shape)
        confusion = confusion + confusion_matrix(label, enlarged, num_classes=size, ignored=IGNORED)
    confusion = np.asarray(confusion)[:num_classes, :num_clusters]
    classes = np.full(num_clusters, -1)
    if protocol.matching == "greedy":
        classes = confusion.argmax(axis=0)
        merged = confusion @ np.eye(num_classes, dtype=np.int64)[classes]
        return classes, class_iou(merged)
    matching = match_clusters(confusion)
    classes[matching.clusters] = np.arange(num_classes)
    return classes, matching.class_iou


def _enlarge(patches: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Resizes to the nearest patch."""
    rows, columns = (
        np.minimum((np.arange(new) + 0.5) * old / new, old - 1).astype(int)
        for old, new in zip(patches.shape, size, strict=True)
    )
    return patches[rows][:, columns]


def _gallery(
    val: SegmentationSplit, maps: np.ndarray, classes: np.ndarray, protocol: UnsupervisedProtocol, labels: np.ndarray
) -> Gallery:
    keeper = GalleryKeeper(val, protocol.image_size)
    # A cluster without a class is wrong everywhere.
    ids = np.where(classes < 0, IGNORED, classes).astype(np.uint8)
    for patches, label in zip(maps, labels, strict=True):
        keeper.consider(label, ids[_enlarge(patches, label.shape)])
    return keeper.gallery()
