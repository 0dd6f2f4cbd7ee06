"""Unsupervised segmentation: k-means on all tokens of a split, clusters matched with classes (Table 3)."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int

from croc_jax.data.labeled.label_files import IGNORED
from croc_jax.data.labeled.segmentation import SegmentationSplit
from croc_jax.evaluation.datasets import describe_pixels, open_pixel_split
from croc_jax.evaluation.features import FrozenFeatures
from croc_jax.evaluation.kmeans import assign_clusters, fit_kmeans
from croc_jax.evaluation.metrics import class_iou, confusion_matrix, count_classes, match_clusters, name_classes
from croc_jax.evaluation.registry import Protocol, Result, Timer
from croc_jax.evaluation.settings import check_choice, check_positive
from croc_jax.evaluation.visualize import ExampleSelector, save_examples


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnsupervisedConfig:
    """Every setting of unsupervised segmentation that moves the score; the defaults are those of the paper's Table 3.

    Attributes:
        image_size: height and width of the images, multiples of the patch size.
        label_size: height and width of the labels, and of the clusters that are compared with them.
        num_clusters: number of clusters K; None for the number of classes.
        matching: "hungarian" assigns one cluster to each class, so that the mean IoU is largest; "greedy" gives each
            cluster the class of most of its pixels.
        l2_normalize: whether tokens are scaled to unit length first.
        seeds: seeds of the k-means starts; the score is the mean over them.
        max_iterations: most iterations of k-means.
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
        check_choice(self, "matching", ("hungarian", "greedy"))
        check_positive(self, "max_iterations")
        if not self.seeds:
            raise ValueError("seeds=(): name one or more")


def evaluate(
    features: FrozenFeatures, dataset: SegmentationSplit, config: UnsupervisedConfig, output: Path | None = None
) -> Result:
    """Clusters all tokens of a split, and scores the clusters as a segmentation; see `Protocol` for the arguments."""
    val, num_clusters = dataset, config.num_clusters or dataset.num_classes
    if config.matching == "hungarian" and num_clusters < val.num_classes:
        raise ValueError(
            f"num_clusters={num_clusters}: one-to-one matching needs one for each of {val.num_classes} classes; "
            "choose more, or matching='greedy'"
        )
    timer, progress = Timer(), features.progress
    data = features.collect_tokens(val, image_size=config.image_size, label_size=config.label_size)
    tokens = data.tokens.reshape(-1, data.tokens.shape[-1])
    timer.end("features")
    mesh = Mesh(np.array(jax.local_devices()), ("data",)) if jax.local_device_count() > 1 else None
    settings = {"max_iterations": config.max_iterations, "unit_length": config.l2_normalize, "mesh": mesh}
    ious, inertia, selector = [], [], ExampleSelector(val, config.image_size, features.module.pixels)
    every_class, predicted = np.arange(val.num_classes), np.zeros(val.num_classes, bool)
    for seed in progress.track(config.seeds, description="k-means") if progress else config.seeds:
        fit = fit_kmeans(tokens, num_clusters, seed=seed, **settings)
        maps = assign_clusters(tokens, fit.centroids, unit_length=config.l2_normalize).reshape(data.tokens.shape[:3])
        classes, per_class = name_clusters(maps, data.labels, num_clusters, config.matching, val.num_classes)
        if not ious:
            predicted = np.isin(every_class, classes[np.unique(maps)])
        if output is not None and not ious:
            # A cluster without a class is wrong everywhere.
            ids = np.where(classes < 0, IGNORED, classes).astype(np.uint8)
            for patches, label in zip(maps, data.labels, strict=True):
                selector.add(label, ids[_enlarge(patches, label.shape)])
        ious.append(per_class)
        inertia.append(fit.inertia)
    timer.end("clustering")
    save_examples(selector.examples(), val.class_names, output)
    timer.end("pictures")
    percent = 100 * np.array([float(np.nanmean(per_class)) for per_class in ious])
    scores = {
        "miou": float(percent.mean()),
        "miou_deviation": float(np.std(percent, ddof=1)) if len(percent) > 1 else None,
        "seed_miou": percent.tolist(),
        "num_images": len(val),
        "num_tokens": len(tokens),
        "num_clusters": num_clusters,
        **count_classes(np.isin(every_class, data.labels), predicted, val.class_names),
        "class_iou": name_classes(val.class_names, 100 * ious[0]),
        "inertia": inertia,
    }
    return Result(scores, describe_pixels(val), val.root, timer.seconds)


def name_clusters(
    maps: Int[np.ndarray, "n r c"],
    labels: Int[np.ndarray, "n h w"],
    num_clusters: int,
    matching: str,
    num_classes: int,
) -> tuple[Int[np.ndarray, " K"], Float[np.ndarray, " k"]]:
    """Assigns clusters to classes; returns the class of each cluster, -1 for none, and the IoU of each class.

    Args:
        maps: cluster of each patch.
        labels: labels of the same images.
        num_clusters: number of clusters K.
        matching: see `UnsupervisedConfig`.
        num_classes: number of classes k.
    """
    size = max(num_clusters, num_classes)
    confusion = np.zeros((size, size), np.int64)
    for patches, label in zip(maps, labels, strict=True):
        confusion += confusion_matrix(label, _enlarge(patches, label.shape), num_classes=size)
    confusion = confusion[:num_classes, :num_clusters]
    if matching == "greedy":
        classes = confusion.argmax(axis=0)
        return classes, class_iou(confusion @ np.eye(num_classes, dtype=np.int64)[classes])
    matched = match_clusters(confusion)
    classes = np.full(num_clusters, -1)
    classes[matched.clusters] = np.arange(num_classes)
    return classes, matched.class_iou


def _enlarge(patches: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Resizes to the nearest patch."""
    rows, columns = (((np.arange(n) + 0.5) * old / n).astype(int) for old, n in zip(patches.shape, size, strict=True))
    return patches[rows][:, columns]


PROTOCOL = Protocol(
    name="unsupervised",
    title="Unsupervised segmentation",
    description=(
        "K-means puts the patch features of all images in clusters, without labels. These only serve to give each "
        "cluster its class and to score the result, so nothing is learned from them."
    ),
    config=UnsupervisedConfig,
    open_dataset=open_pixel_split,
    evaluate=evaluate,
    main_score="miou",
    score_labels={"miou": "mIoU", "miou_deviation": "deviation over seeds"},
    class_scores="class_iou",
    class_label="Intersection over union (%)",
    conventions={
        "tokens": "patch tokens after the final norm, float16",
        "image_resize": "bicubic, antialiased",
        "label_resize": "nearest",
        "upsampling": "clusters: nearest",
        "ignored_label": 255,
        "start": "greedy k-means++ on 65536 tokens, one start a seed",
        "miou": "percent, over the whole split, mean of the classes in labels or clusters, mean over seeds",
    },
)
