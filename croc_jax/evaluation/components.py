"""Principal components of patch features, also of several states of one network."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy.linalg import orthogonal_procrustes

NUM_COMPONENTS = 3


def principal_components(features: Float[np.ndarray, "*batch n d"]) -> Float[np.ndarray, "*batch n 3"]:
    """Returns the scores of all patches on their first three principal components, common to all images.

    Args:
        features: features of patches, at least three each.

    Raises:
        ValueError: for fewer features, or values that are not finite.
    """
    if features.ndim < 2 or features.shape[-1] < NUM_COMPONENTS:
        raise ValueError(f"features {features.shape}: expected [b n d] with d of 3 or more")
    if not np.isfinite(features).all():
        raise ValueError("features: expected finite numbers, found NaN or infinity")
    flat = features.reshape(-1, features.shape[-1]).astype(np.float64)
    flat = flat - flat.mean(axis=0)
    _, axes = np.linalg.eigh(flat.T @ flat)
    axes = axes[:, : -NUM_COMPONENTS - 1 : -1]
    # The sign of an axis is arbitrary: its largest entry is made positive, whatever the machine.
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(NUM_COMPONENTS)])
    return (flat @ axes).reshape(*features.shape[:-1], NUM_COMPONENTS)


def unit_variance(scores: Float[np.ndarray, "*batch 3"]) -> Float[np.ndarray, "*batch 3"]:
    """Returns scores with mean zero, divided by their standard deviation on each axis; zeros stay zeros."""
    scores = scores.astype(np.float64)
    deviation = np.sqrt((scores.reshape(-1, scores.shape[-1]) ** 2).mean(axis=0))
    return scores / np.maximum(deviation, np.finfo(np.float64).tiny)


def align_components(moments: Sequence[Float[np.ndarray, "n 3"]]) -> Float[np.ndarray, "m n 3"]:
    """Rotates the components of each state of a network onto those of the next one, so that colors stay comparable.

    Each state has its own components, since a basis of the last one means nothing to the features of the first. They
    are scaled to unit variance, as colors show them; within their space, an orthogonal matrix (reflections included)
    brings them as near to the next state's as it can (orthogonal Procrustes problem, Schönemann 1966). The last state
    keeps its own axes.

    Args:
        moments: scores of the same patches in each state, with mean zero.
    """
    aligned: list[np.ndarray] = []
    for scores in reversed(moments):
        scaled = unit_variance(scores)
        aligned.insert(0, scaled @ orthogonal_procrustes(scaled, aligned[0])[0] if aligned else scaled)
    return np.stack(aligned)
