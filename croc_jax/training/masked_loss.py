"""The loss of masked patches: the student, which does not see them, against the teacher, which does."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float

from croc_jax.losses import DistillationSums, cross_entropy, entropies
from croc_jax.models import ProjectionHead
from croc_jax.training.dense_loss import CLUSTER_CHUNKS, Rows, TeacherTargets, only_layer, sum_chunks
from croc_jax.training.forward import Params
from croc_jax.training.masks import Masks


@jax.named_scope("heads")
def masked_distillation(
    head: ProjectionHead,
    params: Params,
    student: Float[Array, "b v n d"],
    teacher: Float[Array, "b v n d"],
    masks: Masks,
    targets: TeacherTargets,
    *,
    num_microbatches: int = 1,
    reduce_mesh: Mesh | None = None,
) -> DistillationSums:
    """Returns the loss of iBOT (Zhou et al., 2022), weighted as in DINOv2, and means over all masked patches.

    The loss is the mean over the patches of a view, summed over the masked views and divided by the number of all
    views: with one view of each image masked, half of the mean. It alone has a gradient.

    Args:
        head: the module, which has a last layer for patches.
        params: parameters of the student's head.
        student: the student's last tokens.
        teacher: the teacher's last tokens.
        masks: the masked patches.
        targets: the teacher's side.
        num_microbatches: see `dense_distillation`.
        reduce_mesh: see `dense_distillation`.
    """
    batch, views = student.shape[:2]
    budget = masks.places.shape[1]
    counted = jnp.arange(budget) < masks.counts[:, None]
    shares = counted / jnp.maximum(masks.counts, 1)[:, None] / (views * batch)
    chunks = min(CLUSTER_CHUNKS * num_microbatches, budget)

    def arrange(rows: Float[Array, "b places *d"]) -> Float[Array, "chunks b 1 rows *d"]:
        rows = jnp.pad(rows, ((0, 0), (0, -budget % chunks), *((0, 0),) * (rows.ndim - 2)))
        return jnp.moveaxis(rows.reshape(batch, chunks, -1, *rows.shape[2:]), 1, 0)[:, :, None]

    def take(tokens: Float[Array, "b v n d"]) -> Float[Array, "b places d"]:
        return jax.vmap(lambda image, view, places: image[view, places])(tokens, masks.views, masks.places)

    rows = Rows(arrange(take(student)), arrange(take(teacher)), arrange(counted), shares=arrange(shares))
    needed = jnp.sum(rows.valid.any(axis=(1, 2, 3)))
    params, targets = only_layer("last_layer_masked", params, targets)
    sums: DistillationSums = sum_chunks(partial(_compare, head), reduce_mesh, params, rows, targets, needed)
    return sums.means()._replace(loss=sums.loss)


def _compare(head: ProjectionHead, params: Params, rows: Rows, targets: TeacherTargets) -> DistillationSums:
    """Compares one chunk."""
    student = head.apply({"params": params}, rows.student, method="project_masked")
    teacher = head.apply({"params": targets.params}, rows.teacher, method="project_masked")
    assert isinstance(student, jax.Array) and isinstance(teacher, jax.Array) and rows.shares is not None
    loss = cross_entropy(student, teacher, targets.center, targets.teacher_temp, targets.student_temp)
    entropy = entropies(teacher, targets.center, targets.teacher_temp)
    weights = rows.valid.astype(jnp.float32)
    return DistillationSums(
        count=jnp.sum(weights),
        loss=jnp.sum(rows.shares * loss),
        entropy=jnp.sum(weights * entropy),
        logits=jnp.einsum("bvr,bvrp->p", weights, teacher),
    )
