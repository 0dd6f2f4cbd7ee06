"""An anchor for the patches' similarities."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from croc_jax.unit import unit


def gram_loss(student: Float[Array, "*batch n d"], anchor: Float[Array, "*batch n d"]) -> Float[Array, ""]:
    """Returns the mean squared difference of both networks' cosines between all pairs of patches of a view.

    Examples:
        >>> float(gram_loss(jnp.array([[3.0, 0.0], [0.0, 2.0]]), jnp.array([[1.0, 0.0], [1.0, 0.0]])))
        0.5

    Args:
        student: the student's patches.
        anchor: the other network's; no gradient flows through them.
    """
    ours, theirs = (
        jnp.einsum("...nd,...md->...nm", rows, rows, precision=jax.lax.Precision.HIGHEST)
        for rows in (unit(student), unit(jax.lax.stop_gradient(anchor)))
    )
    return jnp.mean((ours - theirs) ** 2)
