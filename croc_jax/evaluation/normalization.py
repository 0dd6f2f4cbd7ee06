"""Normalization of frozen tokens by their own statistics, so that probes converge alike on any of them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from croc_jax.evaluation.paging import release_pages

NORMALIZATIONS = ("none", "standardize", "whiten")
# Directions with less than this share of the mean variance are rounding noise of half precision.
RELATIVE_FLOOR = 1e-6
IMAGES_AT_ONCE = 32


class TokenScale(NamedTuple):
    """Normalized tokens = (tokens - mean) . transform."""

    mean: Float[Array, " d"]
    transform: Float[Array, "d d"]


def token_scale(tokens: Float[np.ndarray, "n r c d"], normalization: str) -> TokenScale:
    """Measures how to normalize tokens; a few images at a time, summed in float64.

    Args:
        tokens: of all training images.
        normalization: "none", "standardize" (variance 1 for each feature) or "whiten"
            (variance 1 in every direction).
    """
    width = tokens.shape[-1]
    if normalization == "none":
        return TokenScale(jnp.zeros(width), jnp.eye(width))
    mean = _mean_of(jax.jit(_sums), tokens)
    covariance = _mean_of(jax.jit(lambda chunk: _second_moments(chunk, mean.astype(np.float32))), tokens)
    floor = RELATIVE_FLOOR * np.trace(covariance) / width + np.finfo(np.float32).tiny
    if normalization == "standardize":
        transform = np.diag(1 / np.sqrt(np.diagonal(covariance) + floor))
    else:
        values, vectors = np.linalg.eigh(covariance)
        transform = vectors / np.sqrt(np.maximum(values, 0) + floor)
    return TokenScale(jnp.asarray(mean, jnp.float32), jnp.asarray(transform, jnp.float32))


def _mean_of(sum_fn: Callable[[np.ndarray], Array], tokens: np.ndarray) -> np.ndarray:
    total: Any = 0.0
    for start in range(0, len(tokens), IMAGES_AT_ONCE):
        total = total + np.asarray(sum_fn(tokens[start : start + IMAGES_AT_ONCE]), np.float64)
        release_pages(tokens)
    return total / (tokens.size // tokens.shape[-1])


def _sums(chunk: Array) -> Float[Array, " d"]:
    return jnp.sum(chunk.astype(jnp.float32), axis=(0, 1, 2))


def _second_moments(chunk: Array, mean: np.ndarray) -> Float[Array, "d d"]:
    centered = (chunk.astype(jnp.float32) - mean).reshape(-1, chunk.shape[-1])
    return jnp.matmul(centered.T, centered, precision=jax.lax.Precision.HIGHEST)
