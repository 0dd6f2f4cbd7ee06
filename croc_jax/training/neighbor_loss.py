"""The dense loss with that of nearest neighbors: both need the student's logits of the same rows."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float

from croc_jax.losses import DistillationSums, cross_entropy, distill
from croc_jax.models import ProjectionHead
from croc_jax.training.dense_loss import Rows, TeacherTargets, arrange_clusters, only_layer, sum_chunks
from croc_jax.training.forward import Params
from croc_jax.training.neighbors import Neighbors


class NeighborSums(NamedTuple):
    """Sums over clusters, or their means.

    Attributes:
        loss: what is minimized, the weighted sum of both losses.
        dense: those of the dense loss.
        neighbors: the loss of neighbors; weighted in sums.
        share: of the clusters that count, those whose neighbor does, in the mean of both views; in means alone.
    """

    loss: Float[Array, ""]
    dense: DistillationSums
    neighbors: Float[Array, ""]
    share: Float[Array, ""] | None = None


@jax.named_scope("heads")
def neighbor_distillation(
    head: ProjectionHead,
    params: Params,
    student: Float[Array, "b v h k d"],
    teacher: Float[Array, "b v h k d"],
    valid: Bool[Array, "b h k"],
    targets: TeacherTargets,
    neighbors: Neighbors,
    *,
    ratio: float,
    started: bool | Bool[Array, ""] = True,
    shared_count: bool = False,
    num_microbatches: int = 1,
    reduce_mesh: Mesh | None = None,
) -> NeighborSums:
    """Returns means over the valid clusters, as `dense_distillation`, and over the neighbors that count.

    A neighbor's teacher answer is the target of the student's other view. `loss` alone has a gradient: it is the
    dense loss + ratio * that of neighbors.

    Args:
        head: the module.
        params: parameters of the student's head.
        student: the student's centroids.
        teacher: the teacher's centroids.
        valid: clusters that count.
        targets: the teacher's side.
        neighbors: the teacher's nearest neighbors.
        ratio: weight of the loss of neighbors where that of the dense loss is 1.
        started: whether the loss of neighbors counts yet.
        shared_count: see `NeighborsConfig`.
        num_microbatches: see `dense_distillation`.
        reduce_mesh: see `dense_distillation`.
    """
    passes = neighbors.passes & valid[:, None]
    count = jnp.maximum(jnp.sum(valid), 1).astype(jnp.float32)
    # The sum is divided by the count of clusters in the end, the neighbors' part as well.
    shares = ratio * count * _shares(passes & started, shared_count=shared_count)
    rows, needed = arrange_clusters(Rows(student, teacher, valid, neighbors.centroids, shares), num_microbatches)
    params, targets = only_layer("last_layer_dense", params, targets)
    sums: NeighborSums = sum_chunks(partial(_compare, head), reduce_mesh, params, rows, targets, needed)
    share = jnp.sum(passes) / (passes.shape[1] * count)
    return NeighborSums(sums.loss / count, sums.dense.means(), sums.neighbors / (ratio * count), share)


def _shares(passes: Bool[Array, "b v h k"], *, shared_count: bool) -> Float[Array, "b v h k"]:
    """Returns the share of each neighbor in their loss, the mean of both directions."""
    counts = jnp.sum(passes, axis=(0, 2, 3), keepdims=True).astype(jnp.float32)
    counts = counts[:, :1] if shared_count else counts
    # None in the first direction leaves no number to divide by.
    return jnp.where(counts > 0, passes / jnp.maximum(counts, 1), 0.0) / passes.shape[1]


def _compare(head: ProjectionHead, params: Params, rows: Rows, targets: TeacherTargets) -> NeighborSums:
    """Compares one chunk, whose student goes through the head once."""
    assert rows.neighbors is not None and rows.shares is not None
    student = head.apply({"params": params}, rows.student, method="project_dense")
    # Views of the teacher, then of the neighbors, in one product.
    both = jnp.concatenate((rows.teacher, rows.neighbors.astype(rows.teacher.dtype)), axis=1)
    both = head.apply({"params": targets.params}, both, method="project_dense")
    assert isinstance(student, jax.Array) and isinstance(both, jax.Array)
    teacher, neighbors = jnp.split(both, 2, axis=1)
    temps = {"teacher_temp": targets.teacher_temp, "student_temp": targets.student_temp}
    dense = distill(student, teacher, rows.valid, targets.center, **temps)
    loss = jnp.sum(rows.shares * cross_entropy(student[:, ::-1], neighbors, targets.center, **temps))
    return NeighborSums(dense.loss + loss, dense, loss)
