"""Everything that a run carries from one step to the next: how it starts, its shapes, and where it lies."""

import functools
import math

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float, Int

from croc_jax.data.crops import NUM_VIEWS
from croc_jax.float32 import in_float32
from croc_jax.training.config import Recipe
from croc_jax.training.forward import Params, init_networks, init_params
from croc_jax.training.optimizer import make_optimizer
from croc_jax.training.rng import run_keys
from croc_jax.training.schedules import make_schedules
from croc_jax.training.sharding import batch_sharded, state_shardings


@flax.struct.dataclass
class TrainState:
    """The state of a run; a pytree.

    Attributes:
        step: updates so far.
        student: parameters {"backbone": ..., "head": ...}, and "mask_token" if patches are masked.
        teacher: parameters of the same structure, the moving average of the student's.
        opt_state: state of the student's optimizer.
        center: center of the teacher's [CLS] logits.
        center_dense: center of the teacher's centroid logits.
        center_masked: center of the teacher's logits of patches, if patches are masked.
    """

    step: Int[Array, ""]
    student: Params
    teacher: Params
    opt_state: optax.OptState
    center: Float[Array, " p"]
    center_dense: Float[Array, " p"]
    center_masked: Float[Array, " p"] | None = None


@in_float32
def init_state(recipe: Recipe, *, steps_per_epoch: int) -> TrainState:
    """Returns the state before the first step; the teacher starts as a copy of the student.

    Pure, so that it can run under `jax.jit` with output shardings or under `jax.eval_shape`.

    Args:
        recipe: settings of the run.
        steps_per_epoch: updates an epoch.
    """
    init_rng, _ = run_keys(recipe.seed)
    params = init_params(init_networks(recipe), init_rng, crop_size=recipe.data.views.crop_size)
    return state_from_params(recipe, params, steps_per_epoch=steps_per_epoch)


@in_float32
def state_from_params(recipe: Recipe, params: Params, *, steps_per_epoch: int) -> TrainState:
    """Returns the state before the first step of a run that starts from given parameters.

    Args:
        recipe: settings of the run.
        params: parameters {"backbone": ..., "head": ...}.
        steps_per_epoch: updates an epoch.
    """
    optimizer = make_optimizer(recipe, make_schedules(recipe, steps_per_epoch=steps_per_epoch))
    masked = recipe.objective.masked
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        student=params,
        teacher=jax.tree.map(jnp.copy, params),
        opt_state=optimizer.init(params),
        center=jnp.zeros(recipe.head.num_prototypes),
        center_dense=jnp.zeros(recipe.head.num_prototypes_dense),
        center_masked=jnp.zeros(masked.prototypes) if masked.weight else None,
    )


def fresh_state(recipe: Recipe, *, steps_per_epoch: int, mesh: Mesh) -> TrainState:
    """Returns the state before the first step, computed on the devices where it lies.

    Args:
        recipe: settings of the run.
        steps_per_epoch: updates an epoch.
        mesh: mesh of all devices.
    """
    init = functools.partial(init_state, recipe, steps_per_epoch=steps_per_epoch)
    return jax.jit(init, out_shardings=state_shardings(jax.eval_shape(init), mesh))()


def state_shapes(recipe: Recipe, *, steps_per_epoch: int) -> TrainState:
    """Returns shapes and types of a run's state; allocates nothing.

    Args:
        recipe: settings of the run.
        steps_per_epoch: updates an epoch.

    Raises:
        ValueError: for settings that make no network or no schedule.
    """
    return jax.eval_shape(functools.partial(init_state, recipe, steps_per_epoch=steps_per_epoch))


def abstract_state(recipe: Recipe, *, steps_per_epoch: int, mesh: Mesh) -> TrainState:
    """Returns shapes, types and shardings of a run's state; arguments and errors are those of `state_shapes`."""
    shapes = state_shapes(recipe, steps_per_epoch=steps_per_epoch)

    def place(leaf: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(place, shapes, state_shardings(shapes, mesh))


def abstract_batch(recipe: Recipe, *, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns shapes, types and shardings of a batch over all processes.

    Args:
        recipe: settings of the run.
        mesh: mesh of all devices.
    """
    batch, sharding, local = recipe.schedule.batch_size, batch_sharded(mesh), recipe.data.local_views
    pixels = recipe.data.pixels

    def crops(count: int, size: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(
            (batch, count, size, size, pixels.channels), jnp.dtype(pixels.dtype), sharding=sharding
        )

    def boxes(count: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch, count, 5), jnp.float32, sharding=sharding)

    shapes = {"views": crops(NUM_VIEWS, recipe.data.views.crop_size), "boxes": boxes(NUM_VIEWS)}
    if local.count:
        shapes |= {"local_views": crops(local.count, local.crop_size), "local_boxes": boxes(local.count)}
    return shapes


def training_bytes(shapes: TrainState) -> int:
    """Returns the bytes of a whole state and of the student's gradients."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves((shapes, shapes.student)))
