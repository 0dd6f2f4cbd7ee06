"""L2 normalization, as tokens, centroids and heads use it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def unit(vectors: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
    """Scales vectors to length 1, in float32; the gradient at 0 is finite.

    Examples:
        >>> unit(jnp.array([3.0, 4.0])).round(3).tolist()
        [0.6000000238418579, 0.800000011920929]
    """
    vectors = vectors.astype(jnp.float32)
    squared = jnp.sum(vectors**2, axis=-1, keepdims=True)
    return vectors * jax.lax.rsqrt(jnp.maximum(squared, 1e-24))


def unit_scale(vectors: Float[Array, "*batch d"]) -> Float[Array, "*batch"]:
    """Returns the factors that `unit` scales by, in float32: float16 vectors and these are less than unit vectors.

    Examples:
        >>> unit_scale(jnp.array([3.0, 4.0])).round(3).tolist()
        0.20000000298023224
    """
    squared = jnp.sum(vectors.astype(jnp.float32) ** 2, axis=-1)
    return jax.lax.rsqrt(jnp.maximum(squared, 1e-24))
