"""Batch normalization as a pure function: running statistics are parameters without gradient."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# PyTorch's.
EPSILON = 1e-5
MOMENTUM = 0.1
# The Flax collection in which a training pass leaves the statistics of its batch.
STATISTICS = "statistics"


class BatchNorm(nn.Module):
    """Normalizes each feature over images and places.

    The parameters "mean" and "variance" are the running statistics. No gradient reaches them:
    `update_batch_stats` moves them toward what a training pass saw.

    Attributes:
        dtype: type of the result; statistics are float32.
        zero_scale: start from a scale of zero (last layer of a residual branch).
    """

    dtype: Any
    zero_scale: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b r c d"], train: bool) -> Float[Array, "b r c d"]:
        """Returns the features, normalized by the batch's own statistics in training, else by the running ones."""
        shape = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.zeros if self.zero_scale else nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        mean = self.param("mean", nn.initializers.zeros, shape)
        variance = self.param("variance", nn.initializers.ones, shape)
        if train and not self.is_initializing():
            wide = x.astype(jnp.float32)
            mean = jnp.mean(wide, axis=(0, 1, 2))
            variance = jnp.var(wide, axis=(0, 1, 2))
            count = x.size // x.shape[-1]
            self._leave("mean", mean)
            self._leave("variance", variance * count / max(count - 1, 1))
        factor = scale * jax.lax.rsqrt(variance + EPSILON)
        offset = bias - mean * factor
        return (x * factor[None, None, None] + offset[None, None, None]).astype(self.dtype)

    def _leave(self, name: str, value: Array) -> None:
        value = jax.lax.stop_gradient(value)
        self.sow(STATISTICS, name, value, init_fn=lambda: value, reduce_fn=lambda _, new: new)


def update_batch_stats(params: Any, before: Any, statistics: Any) -> Any:
    """Returns parameters whose running statistics are the old ones, moved toward those of a batch.

    Args:
        params: parameters after an update.
        before: the same parameters before the update.
        statistics: statistics of the batch; a tree with some of their leaves.
    """
    if not isinstance(statistics, dict):
        return (1 - MOMENTUM) * before + MOMENTUM * statistics
    followed = {name: update_batch_stats(params[name], before[name], part) for name, part in statistics.items()}
    return {**params, **followed}
