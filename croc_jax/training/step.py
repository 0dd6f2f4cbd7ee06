"""One update: views in, new student, teacher and centers out."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from croc_jax.clustering import patch_positions, view_centroids
from croc_jax.clustering.cross_view import draw_tokens, locate_clusters, token_scores
from croc_jax.data.photometric import augment, augment_local
from croc_jax.float32 import in_float32
from croc_jax.losses import DistillationSums, total_loss, update_center
from croc_jax.models import Backbone, Features, Hidden, clustering_tokens, patch_grid, update_batch_stats
from croc_jax.training.config import Recipe
from croc_jax.training.dense_loss import TeacherTargets, dense_distillation, global_distillation
from croc_jax.training.feature_health import feature_health
from croc_jax.training.forward import Params, encode_views, make_networks
from croc_jax.training.masked_loss import masked_distillation
from croc_jax.training.masks import Masks, draw_masks
from croc_jax.training.optimizer import make_optimizer, stop_frozen_gradients
from croc_jax.training.rng import StepKeys, run_keys, step_keys
from croc_jax.training.schedules import make_schedules
from croc_jax.training.sharding import (
    FSDP_AXIS,
    MODEL_AXIS,
    all_gather_params,
    batch_sharded,
    replicated,
    state_shardings,
)
from croc_jax.training.state import TrainState, state_shapes
from croc_jax.training.step_metrics import (
    Losses,
    Metrics,
    TeacherClusters,
    cluster_metrics,
    loss_metrics,
    masked_metrics,
)

HostBatch = Mapping[str, Array]


class ViewPair(NamedTuple):
    """Two augmented views of each image and what links them.

    Attributes:
        images: normalized views.
        positions: patch centers in the original image.
        local_images: smaller crops for the student's global loss alone, if any.
    """

    images: Float[Array, "b v H W c"]
    positions: Float[Array, "b v n 2"]
    local_images: Float[Array, "b l h w c"] | None = None


def make_train_step(recipe: Recipe, *, steps_per_epoch: int, mesh: Mesh) -> jax.stages.Wrapped:
    """Returns the jitted step: (state, batch) -> (state, metrics).

    The state is donated and lies where `state_shardings` puts it; the batch is split over devices. All
    randomness is a function of the recipe's seed and the state's step.

    Args:
        recipe: settings of the run.
        steps_per_epoch: updates an epoch.
        mesh: mesh of all devices, whose kind decides what "auto" means; to compile for them, they need not exist.
    """
    update = make_update(recipe, steps_per_epoch=steps_per_epoch, mesh=mesh)
    size = recipe.data.views.crop_size
    grid = patch_grid((size, size), recipe.backbone.patch_size)
    settings = recipe.data.photometric, recipe.backbone.image_mean, recipe.backbone.image_std, recipe.data.pixels

    @in_float32
    def train_step(state: TrainState, batch: HostBatch) -> tuple[TrainState, Metrics]:
        _, train_rng = run_keys(recipe.seed)
        keys = step_keys(train_rng, state.step)
        # Scopes name the parts of a step in its trace: benchmarks/trial/trace_parts.py reads them.
        with jax.named_scope("augmentation"):
            images = augment(keys.augment, batch["views"], *settings)
        local_images = None
        if recipe.data.local_views.count:
            local_images = augment_local(keys.augment_local, batch["local_views"], *settings)
        return update(state, ViewPair(images, patch_positions(batch["boxes"], grid), local_images), keys)

    state = state_shardings(state_shapes(recipe, steps_per_epoch=steps_per_epoch), mesh)
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
    recipe follows its devices, and what its fsdp axis splits is all-gathered where it is used.

    Args:
        recipe: settings of the run.
        steps_per_epoch: updates an epoch.
        mesh: mesh of all devices, if there are several.
    """
    all_gather = None if mesh is None or mesh.shape[FSDP_AXIS] == 1 else partial(all_gather_params, mesh=mesh)
    networks = make_networks(recipe, all_gather=all_gather, mesh=mesh)
    reduce_mesh = mesh if _reduces_once(networks.backbone, mesh) else None
    schedules = make_schedules(recipe, steps_per_epoch=steps_per_epoch)
    optimizer = make_optimizer(recipe, schedules)
    num_microbatches, objective = recipe.optimizer.accumulation_steps, recipe.objective

    @in_float32
    def update(
        state: TrainState, views: ViewPair, keys: StepKeys, init_indices: Int[Array, "b h k"] | None = None
    ) -> tuple[TrainState, Metrics]:
        teacher_temp = schedules.teacher_temp(state.step)
        temps = {"teacher_temp": teacher_temp, "student_temp": objective.student_temp}

        # 1. The teacher sees both views; its tokens are clustered jointly.
        encode = partial(
            encode_views, networks.backbone, num_microbatches=num_microbatches, train=True, reduce_mesh=reduce_mesh
        )
        teacher, teacher_statistics = encode(state.teacher["backbone"], views.images)
        clusters = None
        if objective.alpha:
            clusters = _cluster_teacher(recipe, teacher, views.positions, keys.cluster, init_indices)

        # 2. The student sees them too, perhaps without some patches, and takes over the teacher's clusters.
        masks = None
        if objective.masked.weight:
            batch, _, height, width, _ = views.images.shape
            grid = patch_grid((height, width), recipe.backbone.patch_size)
            masks = draw_masks(keys.masks, batch, grid, objective.masked)

        def loss_fn(student_params: Params) -> tuple[Array, Losses]:
            student_params = stop_frozen_gradients(student_params, recipe.optimizer.frozen_blocks)
            backbone = student_params["backbone"]
            hidden = None if masks is None else Hidden(masks.masked, student_params["mask_token"])
            student, statistics = encode(backbone, views.images, drop_path_rng=keys.drop_path, hidden=hidden)
            cls_tokens = student.cls
            if views.local_images is not None:
                local, _ = encode(backbone, views.local_images, drop_path_rng=keys.drop_path_local)
                cls_tokens = jnp.concatenate((cls_tokens, local.cls), axis=1)
            heads = student_params["head"], state.teacher["head"]
            head, teacher_head = heads if all_gather is None else map(all_gather, heads)
            targets = TeacherTargets(teacher_head, state.center, **temps)
            options = {"num_microbatches": num_microbatches, "reduce_mesh": mesh}
            global_loss = global_distillation(networks.head, head, cls_tokens, teacher.cls, targets, **options)
            losses, dense = Losses(global_loss, _no_clusters(state.center_dense), statistics), None
            if clusters is not None:
                centroids, valid = _student_centroids(student, clusters, masks)
                targets = targets._replace(center=state.center_dense)
                rows = centroids, clusters.centroids, valid
                losses = losses._replace(dense_loss=dense_distillation(networks.head, head, *rows, targets, **options))
                dense = losses.dense_loss.loss
            loss = total_loss(objective, global_loss.loss, dense)
            if masks is not None and state.center_masked is not None:
                targets = targets._replace(center=state.center_masked)
                patches = student.patches, teacher.patches, masks, targets
                masked = masked_distillation(networks.head, head, *patches, **options)
                losses, loss = losses._replace(masked_loss=masked), loss + objective.masked.weight * masked.loss
            return loss, losses

        (loss, losses), gradients = jax.value_and_grad(loss_fn, has_aux=True)(state.student)

        # 3. The student learns; the teacher and the centers follow.
        with jax.named_scope("optimizer"):
            updates, opt_state = optimizer.update(gradients, state.opt_state, state.student)
            student: Params = optax.apply_updates(state.student, updates)  # pyright: ignore[reportAssignmentType]
            momentum = schedules.teacher_momentum(state.step)
            teacher_params = jax.tree.map(lambda t, s: momentum * t + (1 - momentum) * s, state.teacher, student)
            center_masked = state.center_masked
            if center_masked is not None and losses.masked_loss is not None:
                center_masked = update_center(center_masked, losses.masked_loss, objective.center_momentum)
            new_state = TrainState(
                step=state.step + 1,
                student=_with_batch_stats(student, state.student, losses.statistics),
                teacher=_with_batch_stats(teacher_params, state.teacher, teacher_statistics),
                opt_state=opt_state,
                center=update_center(state.center, losses.global_loss, objective.center_momentum),
                center_dense=update_center(state.center_dense, losses.dense_loss, objective.center_momentum),
                center_masked=center_masked,
            )
        metrics = {
            "loss": loss,
            **loss_metrics(losses),
            **feature_health(teacher.cls),
            "lr": schedules.learning_rate(state.step),
            "weight_decay": schedules.weight_decay(state.step),
            "momentum": momentum,
            "teacher_temp": teacher_temp,
            **cluster_metrics(clusters),
            **masked_metrics(losses.masked_loss, masks),
        }
        return new_state, {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}

    return update


def _reduces_once(backbone: Backbone, mesh: Mesh | None) -> bool:
    """Says whether devices go through microbatches by themselves, and all-reduce gradients after the last.

    Parameters that are all-gathered block by block, and statistics over the batch, are exchanged in each
    microbatch; and cuDNN's attention has no partitioning where some axes of the mesh are manual and others are not.
    """
    if mesh is None or mesh.shape[FSDP_AXIS] > 1 or backbone.has_batch_statistics:
        return False
    return mesh.shape[MODEL_AXIS] == 1 or getattr(backbone, "attention", "") != "cudnn"


@jax.named_scope("clustering")
def _cluster_teacher(
    recipe: Recipe,
    teacher: Features,
    positions: Float[Array, "b v n 2"],
    rng: Array,
    init_indices: Int[Array, "b h k"] | None,
) -> TeacherClusters:
    """Clusters the teacher's tokens and computes its centroids."""
    config, objective = recipe.clustering, recipe.objective
    tokens, cls_tokens = clustering_tokens(teacher, objective.tokens, groups=objective.token_groups)
    scores = token_scores(tokens, cls_tokens, config)
    if init_indices is None:
        init_indices = draw_tokens(rng, scores / config.temp_r, config.k_start)
    clustering, _ = locate_clusters(tokens, scores, positions, init_indices, config)
    return TeacherClusters(clustering, view_centroids(teacher.patches, teacher.cls, clustering.assignments))


@jax.named_scope("clustering")
def _student_centroids(
    student: Features, clusters: TeacherClusters, masks: Masks | None
) -> tuple[Float[Array, "b v h k d"], Bool[Array, "b h k"]]:
    """Returns the student's centroids, without patches that it does not see, and which clusters count."""
    assignments, valid = clusters.clustering.assignments, clusters.clustering.valid
    if masks is not None:
        assignments = jnp.where(masks.masked[:, :, None, :, None], 0.0, assignments)
        valid &= jnp.all(jnp.any(assignments > 0, axis=-2), axis=1)
    return view_centroids(student.patches, student.cls, assignments), valid


def _with_batch_stats(params: Params, before: Params, statistics: Params) -> Params:
    """Updates the running statistics of a network's backbone, if it has any."""
    if not statistics:
        return params
    return {**params, "backbone": update_batch_stats(params["backbone"], before["backbone"], statistics)}


def _no_clusters(center: Float[Array, " p"]) -> DistillationSums:
    zero = jnp.zeros(())
    return DistillationSums(zero, zero, zero, jnp.zeros_like(center))
