"""Scores: confusion, intersection over union and Hungarian matching of segmentations, ranks of classifications."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from scipy.optimize import linear_sum_assignment

from croc_jax.data.labeled.label_files import IGNORED


class Ranks(NamedTuple):
    """The rank of the true class of each image, 0 for the best, and the class that ranks first."""

    true: Int[np.ndarray, " n"]
    predicted: Int[np.ndarray, " n"]


class Matching(NamedTuple):
    """The cluster of each class, its IoU (NaN where neither occurs), and the mean without NaN."""

    clusters: Int[np.ndarray, " k"]
    class_iou: Float[np.ndarray, " k"]
    miou: float


def confusion_matrix(
    labels: Int[np.ndarray, "..."],
    predictions: Int[np.ndarray, "..."],
    *,
    num_classes: int,
) -> Int[np.ndarray, "k k"]:
    """Counts the pixels of each (class, prediction), without ignored ones; confusions of several images add up.

    Args:
        labels: class ids.
        predictions: class ids of the same shape, all below `num_classes` where labels count.
        num_classes: rows and columns of the result.

    Raises:
        ValueError: for a label or a prediction outside the classes.

    Examples:
        >>> confusion_matrix(np.array([0, 1, 255]), np.array([0, 0, 1]), num_classes=2).tolist()
        [[1, 0], [1, 0]]
    """
    counted = labels != IGNORED
    rows, columns = labels[counted].astype(np.int64), predictions[counted].astype(np.int64)
    for name, values in (("label", rows), ("prediction", columns)):
        if values.size and not 0 <= values.min() <= values.max() < num_classes:
            wrong = values[(values < 0) | (values >= num_classes)][0]
            raise ValueError(f"{name} {wrong} lies outside the {num_classes} classes")
    return np.bincount(rows * num_classes + columns, minlength=num_classes**2).reshape(num_classes, num_classes)


def class_iou(confusion: Int[np.ndarray, "k k"]) -> Float[np.ndarray, " k"]:
    """Returns each class's intersection over union; NaN if it occurs in neither labels nor predictions.

    Examples:
        >>> class_iou(np.array([[3, 1], [0, 4]])).tolist()
        [0.75, 0.8]
    """
    return np.diagonal(_pairwise_iou(confusion)).copy()


def mean_iou(confusion: Int[np.ndarray, "k k"]) -> float:
    """Returns the mean of `class_iou` over the classes that occur; NaN if there are none."""
    return _mean(class_iou(confusion))


# How `Protocol` names them.
IOU_SCORES: dict[str, Any] = {
    "main_score": "miou",
    "score_labels": {"miou": "mIoU"},
    "class_scores": "class_iou",
    "class_label": "Intersection over union (%)",
}


def iou_scores(confusion: Int[np.ndarray, "k k"], class_names: Sequence[str]) -> dict:
    """Returns the scores of a segmentation as results.json holds them, in percent, and the number of classes.

    Raises:
        ValueError: if fewer than two classes occur in the labels.
    """
    per_class = name_classes(class_names, 100 * class_iou(confusion))
    counts = count_classes(confusion.sum(axis=1) > 0, confusion.sum(axis=0) > 0, class_names)
    return {"miou": 100 * mean_iou(confusion), **counts, "class_iou": per_class}


def count_classes(
    in_labels: Bool[np.ndarray, " k"], predicted: Bool[np.ndarray, " k"], class_names: Sequence[str]
) -> dict[str, int]:
    """Returns the number of classes, of those in labels and of those in predictions, as results.json holds them.

    Raises:
        ValueError: if fewer than two classes occur in the labels.
    """
    if in_labels.sum() < 2:
        held = [name for name, occurs in zip(class_names, in_labels, strict=True) if occurs]
        raise ValueError(
            f"of {len(class_names)} classes the labels that are scored hold {f'only {held[0]}' if held else 'none'}: "
            "with fewer than two there is nothing to score; correct the labels, or score them at a larger size"
        )
    counts = {"num_classes": len(class_names), "num_classes_in_labels": int(in_labels.sum())}
    return counts | {"num_classes_predicted": int(predicted.sum())}


def name_classes(names: Iterable[str], values: Iterable[float]) -> dict[str, float | None]:
    """Returns each class's score by its name; None for a class that does not occur."""
    pairs = zip(names, map(float, values), strict=True)
    return {name: None if math.isnan(value) else value for name, value in pairs}


def match_clusters(confusion: Int[np.ndarray, "k k"]) -> Matching:
    """Assigns one cluster to each class so that the mean IoU is largest (Hungarian algorithm).

    Args:
        confusion: pixels of each (class, cluster).

    Examples:
        >>> match_clusters(np.array([[0, 5], [7, 0]])).clusters.tolist()
        [1, 0]
    """
    iou = _pairwise_iou(confusion)
    classes, clusters = linear_sum_assignment(np.nan_to_num(iou), maximize=True)
    matched = iou[classes, clusters]
    return Matching(clusters, matched, _mean(matched))


def class_ranks(scores: Float[Array, "n k"], labels: Int[Array, " n"]) -> Int[Array, " n"]:
    """Returns the rank of the true class, 0 for the best; of equal scores the lower class ranks first.

    Args:
        scores: score of each class, larger is better.
        labels: true classes.
    """
    true = jnp.take_along_axis(scores, labels[:, None], axis=1)
    earlier = jnp.arange(scores.shape[1]) < labels[:, None]
    # NaN is not at least any other score, so that it never ranks first.
    return jnp.sum(~(true >= scores) | ((scores == true) & earlier), axis=1)


def top_accuracy(ranks: Int[np.ndarray, " n"], top: int) -> float:
    """Returns the percentage of images whose true class is among the first `top`.

    Examples:
        >>> top_accuracy(np.array([0, 3, 7, 0]), 5)
        75.0
    """
    return 100 * float(np.mean(ranks < top))


def class_accuracy(
    ranks: Int[np.ndarray, " n"], labels: Int[np.ndarray, " n"], *, num_classes: int
) -> Float[np.ndarray, " k"]:
    """Returns the top-1 accuracy of each class in percent; NaN for a class without images."""
    counts = np.bincount(labels, minlength=num_classes)
    hits = np.bincount(labels, weights=ranks == 0, minlength=num_classes)
    return 100 * np.divide(hits, counts, out=np.full(num_classes, np.nan), where=counts > 0)


def _pairwise_iou(confusion: np.ndarray) -> np.ndarray:
    union = confusion.sum(1)[:, None] + confusion.sum(0) - confusion
    return np.divide(confusion, union, out=np.full(confusion.shape, np.nan), where=union > 0)


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
