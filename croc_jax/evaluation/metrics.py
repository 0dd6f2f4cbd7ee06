"""Scores of segmentations: confusion, intersection over union, and Hungarian matching."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment

IGNORED = 255


class Matching(NamedTuple):
    """Clusters given to classes, one to one.

    Attributes:
        clusters: of each class.
        class_iou: of each class with its cluster; NaN where neither occurs.
        miou: their mean, without NaN.
    """

    clusters: Int[np.ndarray, " k"]
    class_iou: Float[np.ndarray, " k"]
    miou: float


def confusion_matrix(
    labels: Int[np.ndarray, "..."],
    predictions: Int[np.ndarray, "..."],
    *,
    num_classes: int,
    ignored: int = IGNORED,
) -> Int[np.ndarray, "k K"]:
    """Counts pixels of each (class, prediction); confusions of several images simply add up.

    Args:
        labels: class ids.
        predictions: of the same shape, all below num_classes where labels count.
        num_classes: rows and columns of the result.
        ignored: label of pixels that do not count.

    Raises:
        ValueError: for a label or a prediction outside the classes.
    """
    counted = labels != ignored
    rows, columns = labels[counted].astype(np.int64), predictions[counted].astype(np.int64)
    for name, values in (("label", rows), ("prediction", columns)):
        if values.size and not 0 <= values.min() <= values.max() < num_classes:
            wrong = values[(values < 0) | (values >= num_classes)][0]
            raise ValueError(f"{name} {wrong} lies outside the {num_classes} classes")
    return np.bincount(rows * num_classes + columns, minlength=num_classes**2).reshape(num_classes, num_classes)


def class_iou(confusion: Int[np.ndarray, "k k"]) -> Float[np.ndarray, " k"]:
    """Returns each class's intersection over union; NaN if neither labels nor predictions hold it."""
    return np.diagonal(_pairwise_iou(confusion)).copy()


def mean_iou(confusion: Int[np.ndarray, "k k"]) -> float:
    """Returns the mean of `class_iou` over the classes that occur; NaN if there are none."""
    return _mean(class_iou(confusion))


def match_clusters(confusion: Int[np.ndarray, "k k"]) -> Matching:
    """Gives each class one cluster so that the mean IoU is largest (Hungarian algorithm).

    Args:
        confusion: pixels of each (class, cluster).
    """
    iou = _pairwise_iou(confusion)
    classes, clusters = linear_sum_assignment(np.nan_to_num(iou), maximize=True)
    matched = iou[classes, clusters]
    return Matching(clusters, matched, _mean(matched))


def _pairwise_iou(confusion: np.ndarray) -> np.ndarray:
    union = confusion.sum(1)[:, None] + confusion.sum(0) - confusion
    return np.divide(confusion, union, out=np.full(confusion.shape, np.nan), where=union > 0)


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
