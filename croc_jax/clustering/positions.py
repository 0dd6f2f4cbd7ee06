"""From crop boxes to the positions of the patch centers in the original image."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from croc_jax.clustering.validation import LARGEST, check_magnitudes, read_grid, read_numbers


def patch_positions(boxes: Any, grid: tuple[int, int]) -> Float[Array, "*batch n 2"]:
    """Returns the (x, y) of every patch center, in pixels of the original image.

    A patch center lies where the mean of its pixels' coordinates lies, pixel centers being
    whole numbers. Patches are in row-major order of the view, after the flip.

    Args:
        boxes: (top, left, height, width, flip) of each crop in original pixels `[*batch 5]`.
        grid: rows and columns of patches in a view.

    Raises:
        ValueError: for boxes of another shape or that are not finite, or a grid of other than two sizes.
    """
    boxes, (rows, columns) = read_numbers("boxes", boxes), read_grid(grid)
    if boxes.ndim < 1 or boxes.shape[-1] != 5:
        raise ValueError(f"boxes {boxes.shape}: expected (top, left, height, width, flip) along the last axis")
    check_magnitudes({"boxes": (boxes, LARGEST)})
    boxes = boxes.astype(jnp.float32)
    top, left, height, width, flip = (boxes[..., i, None] for i in range(5))
    across = (jnp.arange(columns, dtype=jnp.float32) + 0.5) / columns
    down = (jnp.arange(rows, dtype=jnp.float32) + 0.5) / rows
    lead = (1,) * (boxes.ndim - 1)
    across, down = across.reshape(*lead, -1), down.reshape(*lead, -1)
    x = left + jnp.where(flip > 0.5, 1 - across, across) * width - 0.5
    y = top + down * height - 0.5
    shape = (*boxes.shape[:-1], rows, columns)
    xy = jnp.stack([jnp.broadcast_to(x[..., None, :], shape), jnp.broadcast_to(y[..., :, None], shape)], axis=-1)
    return jax.lax.stop_gradient(xy.reshape(*boxes.shape[:-1], rows * columns, 2))
