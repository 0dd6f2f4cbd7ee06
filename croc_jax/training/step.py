"""One update: views in, new student, teacher and centers out."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from croc_jax.clustering import Clustering, cluster_views, patch_positions, view_centroids
from croc_jax.data.photometric import augment, augment_local
from croc_jax.losses import DistillationSums, update_center
from croc_jax.models import Backbone, Features, clustering_tokens, patch_grid, update_batch_stats
from croc_jax.training.config import Recipe
from croc_jax.training.dense_loss import TeacherTargets, dense_distillation, global_distillation
from croc_jax.training.feature_health import feature_health
from croc_jax.training.forward import encode_views, make_networks
from croc_jax.training.rng import StepKeys, run_keys, step_keys
from croc_jax.training.sharding import (
    FSDP_AXIS,
    MODEL_AXIS,
    all_gather_params,
    batch_sharded,
    replicated,
    state_shardings,
)
from croc_jax.training.state import TrainState, init_state, make_recipe_optimizer, make_recipe_schedules

Metrics = dict[str, Array]
HostBatch = Mapping[str, Array]
Statistics = Any


class ViewPair(NamedTuple):
    """Two augmented views of each image and what links them.

    Attributes:
        images: normalized `[b v H W c]`.
        positions: patch centers in the original image `[v b n 2]`.
        local_images: smaller crops for the student's global loss alone, if any.
    """

    images: Float[Array, "b v H W c"]
    positions: Float[Array, "v b n 2"]
    local_images: Float[Array, "b l h w c"] | None = None


class Located(NamedTuple):
    """The teacher's part of the dense objective: clusters, and its centroids `[v b h k d]`."""

    clustering: Clustering
    centroids: Float[Array, "v b h k d"]


def make_train_step(recipe: Recipe, *, steps_per_epoch: int, mesh: Mesh) -> jax.stages.Wrapped:
    """Returns the jitted step: (state, batch) -> (state, metrics).

    The state is donated and lies where `state_shardings` puts it; the batch is split over devices. All
    randomness is a function of the recipe's seed and the state's step.

    Args:
        recipe: of the run.
        steps_per_epoch: updates an epoch.
        mesh: of all devices, whose kind decides what "auto" means; they need only be described, to compile for them.
    """
    update = make_update(recipe, steps_per_epoch=steps_per_epoch, mesh=mesh)
    size = recipe.data.views.crop_size
    grid = patch_grid((size, size), recipe.backbone.patch_size)

    def train_step(state: TrainState, batch: HostBatch) -> tuple[TrainState, Metrics]:
        _, train_rng = run_keys(recipe.seed)
        keys = step_keys(train_rng, state.step)
        # Scopes name the parts of a step in its trace: benchmarks/trace_parts.py reads them.
        with jax.named_scope("augmentation"):
            images = augment(keys.augment, batch["views"], recipe.data.photometric)
        positions = patch_positions(jnp.moveaxis(batch["boxes"], 1, 0), grid)
        local_images = None
        if recipe.data.local_views.count:
            local_images = augment_local(keys.augment_local, batch["local_views"], recipe.data.photometric)
        return update(state, ViewPair(images, positions, local_images), keys)

    state = state_shardings(jax.eval_shape(partial(init_state, recipe, steps_per_epoch=steps_per_epoch)), mesh)
    return jax.jit(
        train_step,
        in_shardings=(state, batch_sharded(mesh)),
        out_shardings=(state, replicated(mesh)),
        donate_argnums=0,
    )


def make_update(
    recipe: Recipe, *, steps_per_epoch: int, mesh: Mesh | None = None
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Returns the pure function (state, views, keys, init_indices=None) -> (state, metrics).

    `init_indices` fixes the first centroids, for comparisons with other code. With a mesh, "auto" in the
    recipe follows its devices, and what its fsdp axis splits is fetched where it is used.
    """
    fetch = None if mesh is None or mesh.shape[FSDP_AXIS] == 1 else partial(all_gather_params, mesh=mesh)
    networks = make_networks(recipe, fetch=fetch, mesh=mesh)
    apart = mesh if _runs_apart(networks.backbone, mesh) else None
    schedules = make_recipe_schedules(recipe, steps_per_epoch=steps_per_epoch)
    optimizer = make_recipe_optimizer(recipe, steps_per_epoch=steps_per_epoch)
    slices, objective = recipe.optimizer.accumulation_steps, recipe.objective

    def update(
        state: TrainState, views: ViewPair, keys: StepKeys, init_indices: Int[Array, "b h k"] | None = None
    ) -> tuple[TrainState, Metrics]:
        teacher_temp = schedules.teacher_temp(state.step)
        temps = {"teacher_temp": teacher_temp, "student_temp": objective.student_temp}

        # 1. The teacher sees both views; its tokens are clustered jointly.
        encode = partial(encode_views, networks.backbone, slices=slices, train=True, mesh=apart)
        teacher, teacher_statistics = encode(state.teacher["backbone"], views.images)
        located = None
        if objective.alpha:
            located = _locate(recipe, teacher, views, rng=keys.cluster, init_indices=init_indices)

        # 2. The student sees them too, and takes over the teacher's clusters.
        def loss_fn(student_params: dict) -> tuple[Array, tuple[DistillationSums, DistillationSums, Statistics]]:
            backbone = student_params["backbone"]
            student, statistics = encode(backbone, views.images, drop_path_rng=keys.drop_path)
            cls_tokens = student.cls
            if views.local_images is not None:
                local, _ = encode(backbone, views.local_images, drop_path_rng=keys.drop_path_local)
                cls_tokens = jnp.concatenate((cls_tokens, local.cls))
            heads = student_params["head"], state.teacher["head"]
            head, teacher_head = heads if fetch is None else map(fetch, heads)
            teaching = TeacherTargets(teacher_head, state.center, **temps)
            compared = {"slices": slices, "mesh": mesh}
            whole = global_distillation(networks.head, head, cls_tokens, teacher.cls, teaching, **compared)
            if located is None:
                return whole.loss, (whole, _no_clusters(state.center_dense), statistics)
            assignments, valid = located.clustering.assignments, located.clustering.valid
            with jax.named_scope("clustering"):
                centroids = view_centroids(student.patches, student.cls, assignments)
            teaching = teaching._replace(center=state.center_dense)
            parts = dense_distillation(networks.head, head, centroids, located.centroids, valid, teaching, **compared)
            return objective.alpha * parts.loss + whole.loss, (whole, parts, statistics)

        (loss, (whole, parts, statistics)), gradients = jax.value_and_grad(loss_fn, has_aux=True)(state.student)

        # 3. The student learns; the teacher and the centers follow.
        with jax.named_scope("optimizer"):
            updates, opt_state = optimizer.update(gradients, state.opt_state, state.student)
            student: dict = optax.apply_updates(state.student, updates)  # pyright: ignore[reportAssignmentType]
            momentum = schedules.teacher_momentum(state.step)
            teacher_params = jax.tree.map(lambda t, s: momentum * t + (1 - momentum) * s, state.teacher, student)
            new_state = TrainState(
                step=state.step + 1,
                student=_follow(student, state.student, statistics),
                teacher=_follow(teacher_params, state.teacher, teacher_statistics),
                opt_state=opt_state,
                center=update_center(state.center, whole, objective.center_momentum),
                center_dense=update_center(state.center_dense, parts, objective.center_momentum),
            )
        metrics = {
            "loss": loss,
            "loss_dense": parts.loss,
            "loss_global": whole.loss,
            "teacher_entropy": whole.entropy,
            "teacher_entropy_c": parts.entropy,
            # A cross-entropy is the teacher's entropy and the divergence of the student from it.
            "kl": whole.loss - whole.entropy,
            "kl_c": parts.loss - parts.entropy,
            **feature_health(teacher.cls),
            "lr": schedules.learning_rate(state.step),
            "weight_decay": schedules.weight_decay(state.step),
            "momentum": momentum,
            "teacher_temp": teacher_temp,
            **_cluster_metrics(located),
        }
        return new_state, {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}

    return update


def _runs_apart(backbone: Backbone, mesh: Mesh | None) -> bool:
    """Says whether each device goes through slices of the batch by itself, and exchanges gradients after the last.

    Parameters that are fetched block by block, and statistics over the batch, are exchanged in each slice; and
    cuDNN's attention has no partitioning where some axes of the mesh are manual and others are not.
    """
    if mesh is None or mesh.shape[FSDP_AXIS] > 1 or backbone.has_batch_statistics:
        return False
    return mesh.shape[MODEL_AXIS] == 1 or getattr(backbone, "attention", "") != "cudnn"


@jax.named_scope("clustering")
def _locate(recipe: Recipe, teacher: Features, views: ViewPair, *, rng: Array, init_indices: Array | None) -> Located:
    """Clusters the teacher's tokens and takes its centroids."""
    tokens, cls_tokens = clustering_tokens(teacher, recipe.objective.tokens, groups=recipe.objective.token_groups)
    clustering = cluster_views(
        tokens,
        cls_tokens,
        views.positions,
        recipe.clustering,
        rng=rng if init_indices is None else None,
        init_indices=init_indices,
    )
    return Located(clustering, view_centroids(teacher.patches, teacher.cls, clustering.assignments))


def _follow(params: dict, before: dict, statistics: Statistics) -> dict:
    """Moves the running statistics of a network's backbone, if it has any."""
    if not statistics:
        return params
    return {**params, "backbone": update_batch_stats(params["backbone"], before["backbone"], statistics)}


def _no_clusters(center: Array) -> DistillationSums:
    zero = jnp.zeros(())
    return DistillationSums(zero, zero, zero, jnp.zeros_like(center))


def _cluster_metrics(located: Located | None) -> Metrics:
    """The mean K, and the share of clusters that both views show."""
    if located is None:
        return {"num_clusters": jnp.zeros(()), "valid_fraction": jnp.zeros(())}
    num_clusters, valid = located.clustering.num_clusters, located.clustering.valid
    return {
        "num_clusters": jnp.mean(num_clusters.astype(jnp.float32)),
        "valid_fraction": jnp.sum(valid) / jnp.sum(num_clusters),
    }
