"""From crop boxes to the positions of the patch centers in the original image."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def patch_positions(boxes: Float[Array | np.ndarray, "*batch 5"], grid: tuple[int, int]) -> Float[Array, "*batch n 2"]:
    """Returns the (x, y) of every patch center, in pixels of the original image.

    A patch center lies where the mean of its pixels' coordinates lies, pixel centers being
    whole numbers. Patches are in row-major order of the view, after the flip.

    Args:
        boxes: (top, left, height, width, flip) of each crop in original pixels.
        grid: rows and columns of patches in a view.
    """
    boxes = jnp.asarray(boxes, jnp.float32)
    rows, columns = grid
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
