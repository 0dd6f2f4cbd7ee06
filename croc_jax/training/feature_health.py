"""Statistics of a batch's features that fall when they collapse."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# Less variance than this share of the squared norm is rounding.
_NOTHING = 1e-9


def feature_health(cls_tokens: Float[Array, "b v d"]) -> dict[str, Float[Array, ""]]:
    """Returns scalars of the [CLS] tokens of a batch, over all its images and devices.

    With C the covariance over views and images:

    - `feature_rank`: the participation ratio trace(C)^2 / ||C||_F^2, between 1 (all on a line) and d;
      0 if all tokens are equal. It counts the directions that carry variance, without an eigendecomposition.
    - `feature_spread`: trace(C) over the mean squared norm, from 0 (all tokens equal) to 1 (their mean is 0).
    - `feature_norm`: the mean norm.

    Args:
        cls_tokens: [CLS] tokens of both views; no gradient flows through them.
    """
    tokens = jax.lax.stop_gradient(cls_tokens).astype(jnp.float32)
    count = tokens.shape[0] * tokens.shape[1]
    squared_norms = jnp.sum(tokens**2, axis=-1)
    power = jnp.mean(squared_norms)
    # The mean goes first: a difference of squares would be rounding alone in a collapse.
    centered = tokens - jnp.mean(tokens, axis=(0, 1))
    covariance = jnp.einsum("bvd,bvD->dD", centered, centered, precision=jax.lax.Precision.HIGHEST) / count
    trace = jnp.trace(covariance)
    # Scaled by the trace first, so that no square underflows.
    shape = covariance / jnp.maximum(trace, jnp.finfo(jnp.float32).tiny)
    varies = trace > _NOTHING * power
    rank = jnp.where(varies, 1 / jnp.sum(jnp.where(varies, shape, 1.0) ** 2), 0.0)
    spread = trace / jnp.maximum(power, jnp.finfo(jnp.float32).tiny)
    return {"feature_rank": rank, "feature_spread": spread, "feature_norm": jnp.mean(jnp.sqrt(squared_norms))}
