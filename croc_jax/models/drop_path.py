"""Stochastic depth: residual branches that are left out for some images."""

from typing import NamedTuple

import jax
from jax.typing import ArrayLike
from jaxtyping import Array, Float


class DropPath(NamedTuple):
    """Stochastic depth of one block.

    Attributes:
        rate: chance of a residual branch to be left out for an image.
        rng: of this block and step.
    """

    rate: ArrayLike
    rng: Array

    def __call__(self, update: Float[Array, "*shape"], branch: int) -> Float[Array, "*shape"]:
        """Drops the whole update of some images, and scales up the others'."""
        keep, shape = 1 - self.rate, (update.shape[0], *(1,) * (update.ndim - 1))
        kept = jax.random.bernoulli(jax.random.fold_in(self.rng, branch), keep, shape)
        return update * (kept / keep).astype(update.dtype)
