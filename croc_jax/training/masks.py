"""Which patches the student does not see: blocks in one view of each image."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from croc_jax.data.crops import NUM_VIEWS
from croc_jax.losses import MaskedConfig

# Areas that blocks are drawn for start from here, before they are rounded, as long as so many patches are wanted; their
# aspect ratios end there.
SMALLEST = 4
MAX_ASPECT = 1 / 0.3
# A mask is left as it is after so many blocks in a row that do not fit, and after so many blocks in all.
FAILURES, ATTEMPTS = 10, 60


class Masks(NamedTuple):
    """The masked patches of a batch.

    Attributes:
        masked: whether the student does not see a patch.
        views: the view of each image that is masked.
        places: the masked patches of that view, padded with others.
        counts: how many are masked.
    """

    masked: Bool[Array, "b v n"]
    views: Int[Array, " b"]
    places: Int[Array, "b places"]
    counts: Int[Array, " b"]


@jax.named_scope("masks")
def draw_masks(rng: Array, batch: int, grid: tuple[int, int], config: MaskedConfig) -> Masks:
    """Draws a mask of blocks for one view of each image, as DINOv2 does for half of its crops.

    The shares of masked patches are spread evenly over the batch, between those of the config. DINOv2 draws which
    crops are masked from the whole batch; here, each image has one, so that all devices have as many.

    Args:
        rng: key of all masks.
        batch: number of images.
        grid: rows and columns of patches.
        config: the least and the largest share.
    """
    for_views, for_shares, for_order, for_blocks = jax.random.split(rng, 4)
    views = jax.random.randint(for_views, (batch,), 0, NUM_VIEWS)
    places = jax.random.permutation(for_order, batch) + jax.random.uniform(for_shares, (batch,))
    shares = config.min_share + (config.max_share - config.min_share) * places / batch
    budget = max(math.floor(config.max_share * math.prod(grid)), 1)
    wanted = jnp.minimum(jnp.floor(shares * math.prod(grid)).astype(jnp.int32), budget)
    blocks = jax.vmap(lambda key, count: _draw_blocks(key, count, grid))(jax.random.split(for_blocks, batch), wanted)
    flat = blocks.reshape(batch, -1)
    order = jnp.argsort(~flat, axis=1, stable=True)
    return Masks(
        masked=flat[:, None] & (views[:, None] == jnp.arange(NUM_VIEWS))[..., None],
        views=views,
        places=order[:, :budget],
        counts=jnp.sum(flat, axis=1),
    )


def _draw_blocks(rng: Array, wanted: Int[Array, ""], grid: tuple[int, int]) -> Bool[Array, "rows columns"]:
    """Adds blocks until so many patches are masked, or none of several in a row fits."""
    rows, columns = jnp.arange(grid[0])[:, None], jnp.arange(grid[1])[None]
    draws = jax.random.uniform(rng, (ATTEMPTS, 4))

    def attempt(state: tuple[Array, Array], draw: Float[Array, " 4"]) -> tuple[tuple[Array, Array], None]:
        mask, failures = state
        left = wanted - jnp.sum(mask)
        area = SMALLEST + draw[0] * (left - SMALLEST)
        aspect = jnp.exp((2 * draw[1] - 1) * math.log(MAX_ASPECT))
        height, width = (jnp.round(jnp.sqrt(area * ratio)).astype(jnp.int32) for ratio in (aspect, 1 / aspect))
        top = jnp.floor(draw[2] * (grid[0] - height + 1)).astype(jnp.int32)
        first = jnp.floor(draw[3] * (grid[1] - width + 1)).astype(jnp.int32)
        block = (rows >= top) & (rows < top + height) & (columns >= first) & (columns < first + width)
        added = jnp.sum(block & ~mask)
        fits = (height < grid[0]) & (width < grid[1]) & (added > 0) & (added <= left) & (failures < FAILURES)
        failures = jnp.where(fits, 0, failures + 1)
        return (mask | (block & fits), failures), None

    start = jnp.zeros(grid, bool), jnp.zeros((), jnp.int32)
    return jax.lax.scan(attempt, start, draws)[0][0]
