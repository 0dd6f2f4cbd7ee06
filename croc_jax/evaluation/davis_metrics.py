"""DAVIS metrics of a predicted object: region similarity J, boundary accuracy F, and their statistics."""

import math

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

Mask = Bool[np.ndarray, "H W"]

# Boundaries match within this share of the image's diagonal.
BOUNDARY_TOLERANCE = 0.008


def region_similarity(prediction: Mask, truth: Mask) -> float:
    """Returns J, the intersection over union; 1 if both are empty.

    Examples:
        >>> region_similarity(np.array([[True, True]]), np.array([[True, False]]))
        0.5
    """
    union = np.count_nonzero(prediction | truth)
    return float(np.count_nonzero(prediction & truth) / union) if union else 1.0


def boundary_accuracy(prediction: Mask, truth: Mask, *, tolerance: float = BOUNDARY_TOLERANCE) -> float:
    """Returns F, the harmonic mean of precision and recall of boundary pixels.

    They match within `tolerance`, a share of the diagonal that is rounded up to whole pixels.
    """
    radius = math.ceil(tolerance * math.hypot(*truth.shape))
    predicted, true = find_boundary(prediction), find_boundary(truth)
    num_predicted, num_true = np.count_nonzero(predicted), np.count_nonzero(true)
    if not num_predicted or not num_true:
        # An absent boundary makes no mistakes, but finds nothing either.
        return float(num_predicted == num_true)
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    disk = x**2 + y**2 <= radius**2
    precision = np.count_nonzero(predicted & ndimage.binary_dilation(true, disk)) / num_predicted
    recall = np.count_nonzero(true & ndimage.binary_dilation(predicted, disk)) / num_true
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def find_boundary(mask: Mask) -> Mask:
    """Returns the pixels that differ from their neighbor to the right, below, or diagonally between."""
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    right, below, diagonal = padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    boundary = (mask ^ right) | (mask ^ below) | (mask ^ diagonal)
    # Along the last row and column only the one neighbor inside counts.
    boundary[-1], boundary[:, -1] = (mask ^ right)[-1], (mask ^ below)[:, -1]
    boundary[-1, -1] = False
    return boundary


def summarize(values: Float[np.ndarray, " frames"]) -> dict[str, float]:
    """Returns statistics of a metric over the frames of one object, one or more, in their order.

    "mean" over the frames, "recall" (share above one half) and "decay" (mean of the first quarter less the last's).
    """
    # Ends of the quarters, which share a frame each; halves are rounded up.
    ends = np.floor(np.linspace(0, len(values) - 1, 5) + 0.5 + 1e-10).astype(int)
    decay = np.mean(values[: ends[1] + 1]) - np.mean(values[ends[3] :])
    return {"mean": float(np.mean(values)), "recall": float(np.mean(values > 0.5)), "decay": float(decay)}
