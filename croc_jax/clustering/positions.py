"""From crop boxes to the positions of the patch centers in the original image."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from croc_jax.clustering.validation import check_magnitudes, read_grid, read_numbers


def patch_positions(
    boxes: Float[ArrayLike, "*batch 5"], grid: tuple[int, int], *, check: bool = True
) -> Float[Array, "*batch n 2"]:
    """Returns the (x, y) of every patch center, in pixels of the original image.

    A patch center lies where the mean of its pixels' coordinates lies, pixel centers being
    whole numbers. Patches are in row-major order of the view, after the flip.

    Examples:
        >>> patch_positions([0.0, 0.0, 8.0, 16.0, 0.0], (1, 2)).tolist()  # top, left, height, width, flip
        [[3.5, 3.5], [11.5, 3.5]]

    Args:
        boxes: (top, left, height, width, flip) of each crop, in pixels of the original image.
        grid: rows and columns of patches in a view.
        check: whether to read the values, which waits for those of JAX; values of tracers are never read.

    Raises:
        ValueError: for boxes of another shape or that are not finite, or a grid of other than two sizes.
    """
    values, (rows, columns) = read_numbers("boxes", boxes), read_grid(grid)
    if values.ndim < 1 or values.shape[-1] != 5:
        raise ValueError(f"boxes {values.shape}: expected (top, left, height, width, flip) along the last axis")
    if check:
        check_magnitudes({"boxes": values})
    lead = values.shape[:-1]
    top, left, height, width, flip = (jnp.asarray(values[..., i, None], jnp.float32) for i in range(5))
    across = ((jnp.arange(columns, dtype=jnp.float32) + 0.5) / columns).reshape(*(1,) * len(lead), -1)
    down = ((jnp.arange(rows, dtype=jnp.float32) + 0.5) / rows).reshape(*(1,) * len(lead), -1)
    x = left + jnp.where(flip > 0.5, 1 - across, across) * width - 0.5
    y = top + down * height - 0.5
    x, y = (jnp.broadcast_to(part, (*lead, rows, columns)) for part in (x[..., None, :], y[..., :, None]))
    return jax.lax.stop_gradient(jnp.stack([x, y], axis=-1).reshape(*lead, rows * columns, 2))
