"""Stochastic depth: residual branches that are dropped for some images."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int


class DropPath(NamedTuple):
    """Stochastic depth of one block.

    Attributes:
        rate: probability that a residual branch is dropped for an image.
        rng: key of this block and step.
        rows: places of the images in the whole batch, if they are a microbatch; by default, they are all of it.
    """

    rate: ArrayLike
    rng: Array
    rows: Int[Array, " b"] | None = None

    def __call__(self, update: Float[Array, "*shape"], branch: int) -> Float[Array, "*shape"]:
        """Drops the whole update of some images, and scales up the others'."""
        keep, rng = 1 - self.rate, jax.random.fold_in(self.rng, branch)
        rows = jnp.arange(update.shape[0]) if self.rows is None else self.rows

        # Each row has a key of its own, so that a microbatch draws what the whole batch does.
        def draw(row: Array) -> Bool[Array, ""]:
            return jax.random.bernoulli(jax.random.fold_in(rng, row), keep)

        kept = jax.vmap(draw)(rows).reshape(-1, *(1,) * (update.ndim - 1))
        return update * (kept / keep).astype(update.dtype)
