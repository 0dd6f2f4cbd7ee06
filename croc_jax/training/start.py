"""Where a run starts: its first state on a mesh, or the shape of one to restore into."""

import functools
import math

import jax
from jax.sharding import Mesh, NamedSharding

from croc_jax.training.config import Recipe
from croc_jax.training.sharding import state_shardings
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
