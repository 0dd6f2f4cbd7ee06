"""Where a run starts: its first state on a mesh, or the shapes of what a step takes."""

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from croc_jax.data.crops import NUM_VIEWS
from croc_jax.training.config import Recipe
from croc_jax.training.sharding import batch_sharded, state_shardings
from croc_jax.training.state import TrainState, init_state


def abstract_state(recipe: Recipe, *, steps_per_epoch: int, mesh: Mesh) -> TrainState:
    """Returns shapes, types and shardings of a run's state; allocates nothing.

    Raises:
        ValueError: for settings that make no network or no schedule.
    """
    shapes = state_shapes(recipe, steps_per_epoch=steps_per_epoch)

    def place(leaf: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(place, shapes, state_shardings(shapes, mesh))


def abstract_batch(recipe: Recipe, *, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns shapes, types and shardings of a batch over all processes (`HostBatch`)."""
    batch, sharding, local = recipe.schedule.batch_size, batch_sharded(mesh), recipe.data.local_views

    def crops(count: int, size: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch, count, size, size, 3), jnp.uint8, sharding=sharding)

    def boxes(count: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch, count, 5), jnp.float32, sharding=sharding)

    shapes = {"views": crops(NUM_VIEWS, recipe.data.views.crop_size), "boxes": boxes(NUM_VIEWS)}
    if local.count:
        shapes |= {"local_views": crops(local.count, local.crop_size), "local_boxes": boxes(local.count)}
    return shapes


def state_shapes(recipe: Recipe, *, steps_per_epoch: int) -> TrainState:
    """Returns shapes and types of a run's state.

    Raises:
        ValueError: for settings that make no network or no schedule.
    """
    return jax.eval_shape(functools.partial(init_state, recipe, steps_per_epoch=steps_per_epoch))


def training_bytes(shapes: TrainState) -> int:
    """Returns what a whole state takes, and the student's gradients."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves((shapes, shapes.student)))


def fresh_state(recipe: Recipe, *, steps_per_epoch: int, mesh: Mesh) -> TrainState:
    """Returns the state before the first step, made on the devices where it stays."""
    init = functools.partial(init_state, recipe, steps_per_epoch=steps_per_epoch)
    return jax.jit(init, out_shardings=state_shardings(jax.eval_shape(init), mesh))()
