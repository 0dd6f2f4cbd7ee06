"""An anchor for the patches' similarities."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from croc_jax.training.forward import split_microbatches
from croc_jax.unit import unit


@jax.named_scope("gram")
def gram_loss(
    student: Float[Array, "b v n d"], anchor: Float[Array, "b v n d"], *, num_microbatches: int = 1
) -> Float[Array, ""]:
    """Returns the mean squared difference of both networks' cosines between all pairs of patches of a view.

    Args:
        student: the student's patches.
        anchor: the other network's; no gradient flows through them.
        num_microbatches: parts of the batch whose cosines exist one after the other.
    """

    @jax.checkpoint
    def compare(parts: tuple[Array, Array]) -> Array:
        ours, theirs = (
            jnp.einsum("bvnd,bvmd->bvnm", rows, rows, precision=jax.lax.Precision.HIGHEST) for rows in map(unit, parts)
        )
        return jnp.mean((ours - theirs) ** 2)

    both = student, jax.lax.stop_gradient(anchor)
    if num_microbatches == 1:
        return compare(both)
    student, anchor = (split_microbatches(patches, num_microbatches) for patches in both)
    return jnp.mean(jax.lax.map(compare, (student, anchor)))
