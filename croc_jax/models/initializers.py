"""How parameters start, as in the official code."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

truncated_normal = nn.initializers.truncated_normal(stddev=0.02, lower=-100.0, upper=100.0)


def uniform_initializer(bound: float) -> nn.initializers.Initializer:
    """Returns an initializer of uniform values in (-bound, bound)."""

    def init(rng: Array, shape: Any, dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(rng, shape, dtype, -bound, bound)

    return init
