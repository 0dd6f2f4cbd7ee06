"""Position embeddings: learned ones resized to other grids, and rotations by row and column."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

# How other libraries resize an embedding: the official CrOC, DINO and DINOv2 ask PyTorch for a size larger by 0.1;
# Hugging Face does not; DINOv2 with registers and timm have the antialiased kernel of Pillow.
RESIZINGS = ("offset", "plain", "antialias")
ROPE_BASE = 100.0


def resize_position_embedding(
    embedding: Float[Array, "1 n+1 d"], grid: tuple[int, int], new_grid: tuple[int, int], *, resizing: str = "offset"
) -> Float[Array, "1 m+1 d"]:
    """Resizes the patches' part bicubically, as PyTorch does (a = -0.75, border repeated).

    Args:
        embedding: [CLS] first.
        grid: rows and columns that it was learned for.
        new_grid: rows and columns to return.
        resizing: one of `RESIZINGS`.
    """
    if grid == new_grid:
        return embedding
    # Sizes are numbers, or symbolic in an exported program.
    known = all(isinstance(size, int) for size in new_grid)
    width = embedding.shape[-1]
    patches = embedding[0, 1:].reshape(*grid, width)
    matrix = {"offset": lambda *sizes: _cubic_matrix(*sizes, excess=0.1), "plain": _cubic_matrix}.get(
        resizing, _antialiased_matrix
    )
    rows, columns = (matrix(old, new) for old, new in zip(grid, new_grid, strict=True))
    if not known:
        same = jnp.all(jnp.array(grid) == jnp.stack([jnp.array(size) for size in new_grid]))
        rows, columns = (jnp.where(same, jnp.eye(*weights.shape), weights) for weights in (rows, columns))
    precision = jax.lax.Precision.HIGHEST
    patches = jnp.einsum("rR,cC,RCd->rcd", rows, columns, patches, precision=precision)
    return jnp.concatenate([embedding[:, :1], patches.reshape(1, -1, width)], axis=1)


def _cubic_matrix(old: int, new: Any, excess: float = 0.0) -> Any:
    """Returns the weights `[new old]` of a cubic interpolation; the excess, meant against rounding, shifts samples."""
    xp = _array_module(new)
    centers = (xp.arange(new) + 0.5) * old / (xp.array(new) + excess) - 0.5
    left = xp.floor(centers)
    weights = 0.0
    for offset in range(-1, 3):
        weight = _cubic_kernel(xp.abs(centers - (left + offset)))
        source = xp.clip(left + offset, 0, old - 1)
        weights += xp.where(source[:, None] == xp.arange(old), weight[:, None], 0.0)
    return weights.astype(np.float32)  # pyright: ignore[reportAttributeAccessIssue]


def _antialiased_matrix(old: int, new: Any) -> Any:
    """Returns the weights `[new old]` of Pillow's bicubic filter, which widens where it shrinks."""
    xp = _array_module(new)
    scale = xp.maximum(old / xp.array(new), 1.0)
    centers = (xp.arange(new)[:, None] + 0.5) * old / xp.array(new)
    distance = xp.abs(xp.arange(old) + 0.5 - centers) / scale
    weights = _cubic_kernel(distance, a=-0.5)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def _array_module(size: Any) -> Any:
    """Returns NumPy where a size is known, which computes in double precision and at once; else JAX's."""
    return np if isinstance(size, int | np.integer) else jnp


def _cubic_kernel(distance: Any, a: float = -0.75) -> Any:
    xp = np if isinstance(distance, np.ndarray) else jnp
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return xp.where(distance <= 1, near, xp.where(distance < 2, far, 0.0))


def rotation_tables(grid: tuple[int, int], head_width: int, *, prefix: int) -> Float[np.ndarray | Array, "2 n dh"]:
    """Returns cosines and sines that rotate queries and keys by row and column, as in DINOv3.

    Rows and columns run from -1 to 1, whatever the grid; half of the angles belong to rows. Tokens
    without a place stay as they are.

    Args:
        grid: rows and columns of patches.
        head_width: a multiple of 4.
        prefix: tokens without a place, which come first.
    """
    xp = np if all(isinstance(size, int) for size in grid) else jnp
    periods = ROPE_BASE ** (np.arange(head_width // 4) / (head_width // 4))
    lines = [(2 * xp.arange(n) + 1) / xp.array(n) - 1 for n in grid]
    places = xp.stack(xp.meshgrid(*lines, indexing="ij"), axis=-1)
    angles = (2 * np.pi * places.reshape(-1, 2, 1) / periods).reshape(-1, head_width // 2)
    angles = xp.concatenate([xp.zeros((prefix, head_width // 2)), angles])
    angles = xp.concatenate([angles, angles], axis=1)
    return xp.stack([xp.cos(angles), xp.sin(angles)]).astype(np.float32)


def rotate(tokens: Float[Array, "b h n dh"], tables: Float[Array | np.ndarray, "2 n dh"]) -> Float[Array, "b h n dh"]:
    """Turns each pair of features (i, i + dh / 2) of queries or keys by their token's angles.

    Args:
        tokens: queries or keys in any precision, which the result keeps.
        tables: see `rotation_tables`.
    """
    half = tokens.shape[-1] // 2
    cosines, sines = (table.astype(jnp.float32) for table in tables)
    turned = jnp.concatenate([-tokens[..., half:], tokens[..., :half]], axis=-1)
    return (tokens * cosines + turned * sines).astype(tokens.dtype)
