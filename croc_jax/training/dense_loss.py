"""Student against teacher through both heads, over rows in chunks whose logits exist one at a time."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from croc_jax.losses import DistillationSums, distill
from croc_jax.models import ProjectionHead
from croc_jax.training.forward import cut
from croc_jax.training.sharding import BATCH_AXES, num_data_shards, shard_map_batch

Params = Any
# Chunks of clusters. Nearly half of the fixed number of clusters do not count, and chunks of
# nothing else are skipped.
CLUSTER_CHUNKS = 8
_WHOLE, _BY_ROWS = PartitionSpec(), PartitionSpec(None, BATCH_AXES)
# Of parameters, rows, teaching, and the number of chunks.
_ARGUMENTS = (_WHOLE, _BY_ROWS, _WHOLE, _WHOLE)


class TeacherTargets(NamedTuple):
    """What no gradient flows to: the teacher's head, its center, and both temperatures."""

    params: Params
    center: Float[Array, " p"]
    teacher_temp: Float[Array, ""]
    student_temp: float


class Rows(NamedTuple):
    """Rows of both networks, cut into chunks.

    Attributes:
        student: what the student's head sees `[chunks b u *rest d]`.
        teacher: what the teacher's head sees.
        valid: rows that count `[chunks b *rest]`.
    """

    student: Float[Array, "chunks b u *rest d"]
    teacher: Float[Array, "chunks b v *rest d"]
    valid: Bool[Array, "chunks b *rest"]


@jax.named_scope("heads")
def global_distillation(
    head: ProjectionHead,
    params: Params,
    student: Float[Array, "u b d"],
    teacher: Float[Array, "v b d"],
    teaching: TeacherTargets,
    *,
    slices: int = 1,
    mesh: Mesh | None = None,
) -> DistillationSums:
    """Returns means over the [CLS] tokens of the batch (global loss).

    Args:
        head: the module.
        params: the student's.
        student: [CLS] tokens of both views, then of those that the student alone sees.
        teacher: of both views.
        teaching: the teacher's side.
        slices: into which the batch is cut.
        mesh: whose devices add up what they have found once, after all slices.
    """
    valid = jnp.ones(student.shape[1], bool)
    batch_first = (jnp.moveaxis(student, 1, 0), jnp.moveaxis(teacher, 1, 0), valid)
    rows = Rows(*(cut(array, slices) for array in batch_first))
    compare = partial(_compare, head, "project_global")
    params, teaching = _without("last_layer_dense", params, teaching)
    if slices == 1:
        return compare(params, jax.tree.map(lambda array: array[0], rows), teaching).means()
    sums: DistillationSums = _sum_chunks(compare, mesh, params, rows, teaching, slices)
    return sums.means()


@jax.named_scope("heads")
def dense_distillation(
    head: ProjectionHead,
    params: Params,
    student: Float[Array, "v b h k d"],
    teacher: Float[Array, "v b h k d"],
    valid: Bool[Array, "b h k"],
    teaching: TeacherTargets,
    *,
    slices: int = 1,
    mesh: Mesh | None = None,
) -> DistillationSums:
    """Returns means over the valid clusters of all images and heads of the batch (dense loss).

    Args:
        head: the module.
        params: the student's.
        student: centroids.
        teacher: alike.
        valid: clusters that count.
        teaching: the teacher's side.
        slices: a chunk has the clusters of one such part of the batch, at most.
        mesh: whose devices add up what they have found once, after all chunks.
    """
    views, batch, heads, count, width = student.shape
    valid = valid.reshape(batch, heads * count)
    chunks = min(CLUSTER_CHUNKS * slices, heads * count)
    # Each image's valid clusters come first, so that the chunks at the end hold none.
    order = jnp.argsort(~valid, axis=1, stable=True)
    missing = -heads * count % chunks

    def arrange(array: Array) -> Array:
        array = jax.vmap(lambda image, places: image[places])(array, order)
        array = jnp.pad(array, ((0, 0), (0, missing), *((0, 0),) * (array.ndim - 2)))
        return jnp.moveaxis(array.reshape(batch, chunks, -1, *array.shape[2:]), 1, 0)

    def arrange_views(array: Array) -> Array:
        rows = jnp.moveaxis(array.reshape(views, batch, heads * count, width), 0, 2)
        return jnp.moveaxis(arrange(rows), 3, 2)

    rows = Rows(arrange_views(student), arrange_views(teacher), arrange(valid))
    needed = jnp.sum(rows.valid.any(axis=(1, 2)))
    params, teaching = _without("last_layer", params, teaching)
    sums: DistillationSums = _sum_chunks(partial(_compare, head, "project_dense"), mesh, params, rows, teaching, needed)
    return sums.means()


def _without(layer: str, params: Params, teaching: TeacherTargets) -> tuple[Params, TeacherTargets]:
    """Leaves out a layer that has no part, whose gradient would be carried along."""

    def rest(layers: Params) -> Params:
        return {name: layers[name] for name in layers if name != layer}

    return rest(params), teaching._replace(params=rest(teaching.params))


def _compare(
    head: ProjectionHead, method: str, params: Params, rows: Rows, teaching: TeacherTargets
) -> DistillationSums:
    """Compares one chunk; the view axis, second in a chunk, leads in the objective."""
    # The head flattens its rows, which must not mix the batch axis into another: devices share it.
    student = head.apply({"params": params}, rows.student, method=method)
    teacher = head.apply({"params": teaching.params}, rows.teacher, method=method)
    return distill(
        jnp.moveaxis(student, 0, 1),  # pyright: ignore[reportArgumentType]
        jnp.moveaxis(teacher, 0, 1),  # pyright: ignore[reportArgumentType]
        rows.valid,
        teaching.center,
        teacher_temp=teaching.teacher_temp,
        student_temp=teaching.student_temp,
    )


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _sum_chunks(
    compare: Any, mesh: Mesh | None, params: Params, rows: Rows, teaching: TeacherTargets, needed: Int[Array, ""] | int
) -> DistillationSums:
    """Returns the sums over the first `needed` chunks; of them, only the loss has a gradient.

    Each chunk's gradient is taken along with its loss: nothing is kept for the backward pass or
    computed twice.
    """

    def sum_own(params: Params, rows: Rows, teaching: TeacherTargets, needed: Any) -> DistillationSums:
        def add(index: Array, total: DistillationSums) -> DistillationSums:
            return _add(total, compare(params, _chunk(rows, index), teaching))

        zeros = _zeros_like(jax.eval_shape(compare, params, _chunk(rows, 0), teaching))
        return _over_devices(jax.lax.fori_loop(0, needed, add, zeros), mesh)

    return shard_map_batch(sum_own, mesh, _ARGUMENTS, _WHOLE)(params, rows, teaching, needed)


def _sum_chunks_forward(
    compare: Any, mesh: Mesh | None, params: Params, rows: Rows, teaching: TeacherTargets, needed: Any
) -> tuple:
    def sum_own(params: Params, rows: Rows, teaching: TeacherTargets, needed: Any) -> tuple:
        def loss(params: Params, student: Array, chunk: Rows) -> tuple[Array, DistillationSums]:
            sums = compare(params, chunk._replace(student=student), teaching)
            return sums.loss, sums

        def add(index: Array, carry: tuple) -> tuple:
            total, to_params, to_student = carry
            chunk = _chunk(rows, index)
            gradients, sums = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, chunk.student, chunk)
            return _add(total, sums), _add(to_params, gradients[0]), to_student.at[index].set(gradients[1])

        start = (jax.eval_shape(compare, params, _chunk(rows, 0), teaching), params, rows.student)
        total, to_params, to_student = jax.lax.fori_loop(0, needed, add, _zeros_like(start))
        return *_over_devices((total, to_params), mesh), to_student

    results = (_WHOLE, _WHOLE, _BY_ROWS)
    total, *gradients = shard_map_batch(sum_own, mesh, _ARGUMENTS, results)(params, rows, teaching, needed)
    return total, gradients


def _sum_chunks_backward(_: Any, __: Any, gradients: list, cotangent: DistillationSums) -> tuple:
    to_params, to_student = jax.tree.map(lambda gradient: cotangent.loss * gradient, gradients)
    return to_params, Rows(to_student, None, None), None, None  # pyright: ignore[reportArgumentType]


_sum_chunks.defvjp(_sum_chunks_forward, _sum_chunks_backward)


def _over_devices(own: Any, mesh: Mesh | None) -> Any:
    """Adds up what the devices that split the batch have found."""
    return own if mesh is None or num_data_shards(mesh) == 1 else jax.lax.psum(own, BATCH_AXES)


def _chunk(rows: Rows, index: Array | int) -> Rows:
    return jax.tree.map(lambda array: array[index], rows)


def _add(left: Any, right: Any) -> Any:
    return jax.tree.map(jnp.add, left, right)


def _zeros_like(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), tree)
