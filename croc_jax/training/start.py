"""Where a run starts: its first state on a mesh, or the shape of one to restore into."""

import functools

import jax
from jax.sharding import Mesh

from croc_jax.training.config import Recipe
from croc_jax.training.sharding import replicated
from croc_jax.training.state import TrainState, init_state


def abstract_state(recipe: Recipe, *, steps_per_epoch: int, mesh: Mesh) -> TrainState:
    """Returns shapes, types and shardings of a run's state; allocates nothing.

    Raises:
        ValueError: for settings that make no network or no schedule.
    """
    shapes = jax.eval_shape(functools.partial(init_state, recipe, steps_per_epoch=steps_per_epoch))
    whole = replicated(mesh)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole), shapes)


def fresh_state(recipe: Recipe, *, steps_per_epoch: int, mesh: Mesh) -> TrainState:
    """Returns the state before the first step, made on the devices where it stays."""
    init = functools.partial(init_state, recipe, steps_per_epoch=steps_per_epoch)
    return jax.jit(init, out_shardings=replicated(mesh))()
