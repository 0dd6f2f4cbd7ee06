"""Student against teacher through the head, over rows in chunks whose logits exist one at a time."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, PyTree

from croc_jax.losses import DistillationSums, distill
from croc_jax.models import ProjectionHead
from croc_jax.training.forward import Params, split_microbatches
from croc_jax.training.sharding import BATCH_AXES, num_data_shards, shard_map_batch

# Chunks of clusters. Nearly half of the fixed number of clusters do not count, and chunks of
# nothing else are skipped.
CLUSTER_CHUNKS = 8
_REPLICATED, _BY_ROWS = PartitionSpec(), PartitionSpec(None, BATCH_AXES)
# Of parameters, rows, the teacher's side, and the number of chunks.
_ARGUMENTS = (_REPLICATED, _BY_ROWS, _REPLICATED, _REPLICATED)


class TeacherTargets(NamedTuple):
    """What no gradient flows to: the parameters of the teacher's head, its center, and both temperatures."""

    params: Params
    center: Float[Array, " p"]
    teacher_temp: Float[Array, ""]
    student_temp: float


class Rows(NamedTuple):
    """Rows of both networks, divided into chunks.

    Attributes:
        student: inputs of the student's head.
        teacher: inputs of the teacher's head.
        valid: rows that count.
        shares: weights of the rows in the loss; without them, all that are valid count alike.
    """

    student: Float[Array, "chunks b u *rows d"]
    teacher: Float[Array, "chunks b v *rows d"]
    valid: Bool[Array, "chunks b *rows"]
    shares: Float[Array, "chunks b v rows"] | None = None


Compare = Callable[[Params, Rows, TeacherTargets], DistillationSums]


@jax.named_scope("heads")
def global_distillation(
    head: ProjectionHead,
    params: Params,
    student: Float[Array, "b u d"],
    teacher: Float[Array, "b v d"],
    targets: TeacherTargets,
    *,
    num_microbatches: int = 1,
    reduce_mesh: Mesh | None = None,
) -> DistillationSums:
    """Returns means over the [CLS] tokens of the batch (global loss).

    Args:
        head: the module.
        params: parameters of the student's head.
        student: [CLS] tokens of both views, then of those that the student alone sees.
        teacher: [CLS] tokens of both views.
        targets: the teacher's side.
        num_microbatches: parts of the batch that are compared one after the other.
        reduce_mesh: devices that all-reduce their sums once, after all microbatches.
    """
    batch_first = (student, teacher, jnp.ones(student.shape[0], bool))
    rows = Rows(*(split_microbatches(array, num_microbatches) for array in batch_first))
    compare = partial(_compare, head, "project_global")
    params, targets = only_layer("last_layer", params, targets)
    if num_microbatches == 1:
        return compare(params, _chunk(rows, 0), targets).means()
    sums: DistillationSums = sum_chunks(compare, reduce_mesh, params, rows, targets, num_microbatches)
    return sums.means()


@jax.named_scope("heads")
def dense_distillation(
    head: ProjectionHead,
    params: Params,
    student: Float[Array, "b v h k d"],
    teacher: Float[Array, "b v h k d"],
    valid: Bool[Array, "b h k"],
    targets: TeacherTargets,
    *,
    num_microbatches: int = 1,
    reduce_mesh: Mesh | None = None,
) -> DistillationSums:
    """Returns means over the valid clusters of all images and heads of the batch (dense loss).

    Args:
        head: the module.
        params: parameters of the student's head.
        student: the student's centroids.
        teacher: the teacher's centroids.
        valid: clusters that count.
        targets: the teacher's side.
        num_microbatches: a chunk has at most as many clusters as an eighth of one of so many parts of the batch.
        reduce_mesh: devices that all-reduce their sums once, after all chunks.
    """
    batch, views, heads, clusters, width = student.shape
    count = heads * clusters
    valid = valid.reshape(batch, count)
    chunks = min(CLUSTER_CHUNKS * num_microbatches, count)
    # Each image's valid clusters come first, so that the chunks at the end hold none.
    order = jnp.argsort(~valid, axis=1, stable=True)

    def arrange(rows: Float[Array, "b hk *v_d"]) -> Float[Array, "chunks b rows *v_d"]:
        rows = jax.vmap(lambda image, places: image[places])(rows, order)
        rows = jnp.pad(rows, ((0, 0), (0, -count % chunks), *((0, 0),) * (rows.ndim - 2)))
        return jnp.moveaxis(rows.reshape(batch, chunks, -1, *rows.shape[2:]), 1, 0)

    def arrange_views(centroids: Float[Array, "b v h k d"]) -> Float[Array, "chunks b v rows d"]:
        return jnp.swapaxes(arrange(jnp.swapaxes(centroids.reshape(batch, views, count, width), 1, 2)), 2, 3)

    rows = Rows(arrange_views(student), arrange_views(teacher), arrange(valid))
    needed = jnp.sum(rows.valid.any(axis=(1, 2)))
    params, targets = only_layer("last_layer_dense", params, targets)
    compare = partial(_compare, head, "project_dense")
    sums: DistillationSums = sum_chunks(compare, reduce_mesh, params, rows, targets, needed)
    return sums.means()


def only_layer(layer: str, params: Params, targets: TeacherTargets) -> tuple[Params, TeacherTargets]:
    """Leaves out the last layers that are not used, whose gradients would be carried along."""

    def used(layers: Params) -> Params:
        return {name: layers[name] for name in layers if name == layer or not name.startswith("last_layer")}

    return used(params), targets._replace(params=used(targets.params))


def _compare(
    head: ProjectionHead, method: str, params: Params, rows: Rows, targets: TeacherTargets
) -> DistillationSums:
    """Compares one chunk."""
    # The head flattens its rows, which must not mix the batch axis into another: devices share it.
    student = head.apply({"params": params}, rows.student, method=method)
    teacher = head.apply({"params": targets.params}, rows.teacher, method=method)
    assert isinstance(student, jax.Array) and isinstance(teacher, jax.Array)
    temps = {"teacher_temp": targets.teacher_temp, "student_temp": targets.student_temp}
    return distill(student, teacher, rows.valid, targets.center, **temps)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def sum_chunks(
    compare: Compare,
    reduce_mesh: Mesh | None,
    params: Params,
    rows: Rows,
    targets: TeacherTargets,
    needed: Int[Array, ""] | int,
) -> DistillationSums:
    """Returns the sums over the first `needed` chunks; of them, only `loss` has a gradient.

    Each chunk's gradient is taken along with its loss: nothing is kept for the backward pass or
    computed twice.
    """

    def sum_local(params: Params, rows: Rows, targets: TeacherTargets, needed: Array) -> DistillationSums:
        def add(index: Array, total: DistillationSums) -> DistillationSums:
            return _add(total, compare(params, _chunk(rows, index), targets))

        zeros = _zeros_like(jax.eval_shape(compare, params, _chunk(rows, 0), targets))
        return _all_reduce(jax.lax.fori_loop(0, needed, add, zeros), reduce_mesh)

    return shard_map_batch(sum_local, reduce_mesh, _ARGUMENTS, _REPLICATED)(params, rows, targets, needed)


def _sum_chunks_forward(
    compare: Compare,
    reduce_mesh: Mesh | None,
    params: Params,
    rows: Rows,
    targets: TeacherTargets,
    needed: Int[Array, ""] | int,
) -> tuple[DistillationSums, list[PyTree]]:
    def sum_local(params: Params, rows: Rows, targets: TeacherTargets, needed: Array) -> tuple:
        def loss(params: Params, student: Array, chunk: Rows) -> tuple[Array, DistillationSums]:
            sums = compare(params, chunk._replace(student=student), targets)
            return sums.loss, sums

        def add(index: Array, carry: tuple) -> tuple:
            total, to_params, to_student = carry
            chunk = _chunk(rows, index)
            gradients, sums = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, chunk.student, chunk)
            return _add(total, sums), _add(to_params, gradients[0]), to_student.at[index].set(gradients[1])

        start = (jax.eval_shape(compare, params, _chunk(rows, 0), targets), params, rows.student)
        total, to_params, to_student = jax.lax.fori_loop(0, needed, add, _zeros_like(start))
        return *_all_reduce((total, to_params), reduce_mesh), to_student

    results = (_REPLICATED, _REPLICATED, _BY_ROWS)
    total, *gradients = shard_map_batch(sum_local, reduce_mesh, _ARGUMENTS, results)(params, rows, targets, needed)
    return total, gradients


def _sum_chunks_backward(
    _: Compare, __: Mesh | None, gradients: list[PyTree], cotangent: DistillationSums
) -> tuple[PyTree, ...]:
    to_params, to_student = jax.tree.map(lambda gradient: cotangent.loss * gradient, gradients)
    return to_params, Rows(to_student, None, None), None, None  # pyright: ignore[reportArgumentType]


sum_chunks.defvjp(_sum_chunks_forward, _sum_chunks_backward)


def _all_reduce(tree: Any, mesh: Mesh | None) -> Any:
    """Adds up the sums of the devices that split the batch."""
    return tree if mesh is None or num_data_shards(mesh) == 1 else jax.lax.psum(tree, BATCH_AXES)


def _chunk(rows: Rows, index: Array | int) -> Rows:
    return jax.tree.map(lambda array: array[index], rows)


def _add(left: PyTree, right: PyTree) -> Any:
    return jax.tree.map(jnp.add, left, right)


def _zeros_like(tree: PyTree) -> Any:
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), tree)
