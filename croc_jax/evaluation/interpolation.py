"""Bilinear upsampling as two matrix products: exact gradients, any size, no gather."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def bilinear_matrix(old: int, new: int, padded: int | None = None) -> Float[np.ndarray, "new old"]:
    """Returns the weights that resize one axis, with pixel centers at (i + 0.5) * old / new.

    The border is repeated, as in PyTorch's `interpolate(align_corners=False)` without antialiasing. Zeros pad the
    result to `padded` rows.
    """
    centers = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    left = np.minimum(np.floor(centers).astype(int), max(old - 2, 0))
    right = np.minimum(left + 1, old - 1)
    weights = np.zeros((new if padded is None else padded, old))
    np.add.at(weights, (np.arange(new), left), 1 - (centers - left))
    np.add.at(weights, (np.arange(new), right), centers - left)
    return weights.astype(np.float32)


def resize_with(
    rows: Float[Array | np.ndarray, "R r"],
    columns: Float[Array | np.ndarray, "C c"],
    grid: Float[Array, "*b r c k"],
) -> Float[Array, "*b R C k"]:
    """Resizes a grid of vectors by the matrices of its two axes, in float32 on every backend."""
    precision = jax.lax.Precision.HIGHEST
    wide = jnp.einsum("Rr,...rck->...Rck", rows, grid, precision=precision)
    return jnp.einsum("Cc,...Rck->...RCk", columns, wide, precision=precision)
