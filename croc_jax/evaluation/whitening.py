"""Normalization of frozen features by the statistics of a training split, so that probes converge on any weights."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from croc_jax.evaluation.mmap import release_pages

# Directions with less than this share of the mean variance are rounding noise of half precision.
RELATIVE_FLOOR = 1e-6
IMAGES_AT_ONCE = 32


def fit_scale(
    features: Float[np.ndarray, "n ... d"], normalization: str
) -> tuple[Float[Array, " d"], Float[Array, "d d"]]:
    """Returns mean and transform: normalized features are (features - mean) . transform. Sums are in float64.

    Args:
        features: features of all training images.
        normalization: see `ProbeConfig`.
    """
    width = features.shape[-1]
    if normalization == "none":
        return jnp.zeros(width), jnp.eye(width)
    mean = _mean(jax.jit(lambda chunk: jnp.sum(_flat(chunk), axis=0)), features)
    center = mean.astype(np.float32)
    covariance = _mean(jax.jit(lambda chunk: _second_moments(_flat(chunk) - center)), features)
    floor = RELATIVE_FLOOR * np.trace(covariance) / width + np.finfo(np.float32).tiny
    if normalization == "standardize":
        transform = np.diag(1 / np.sqrt(np.diagonal(covariance) + floor))
    else:
        values, vectors = np.linalg.eigh(covariance)
        transform = vectors / np.sqrt(np.maximum(values, 0) + floor)
    return jnp.asarray(mean, jnp.float32), jnp.asarray(transform, jnp.float32)


def _mean(sum_fn: Callable[[np.ndarray], Array], features: np.ndarray) -> np.ndarray:
    total = np.zeros(())
    for start in range(0, len(features), IMAGES_AT_ONCE):
        total = total + np.asarray(sum_fn(features[start : start + IMAGES_AT_ONCE]), np.float64)
        release_pages(features)
    return total / (features.size // features.shape[-1])


def _flat(chunk: Array) -> Float[Array, "m d"]:
    return chunk.astype(jnp.float32).reshape(-1, chunk.shape[-1])


def _second_moments(centered: Float[Array, "m d"]) -> Float[Array, "d d"]:
    return jnp.matmul(centered.T, centered, precision=jax.lax.Precision.HIGHEST)
