"""Everything that a run carries from one step to the next."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from croc_jax.training.config import Recipe
from croc_jax.training.forward import init_networks, init_params
from croc_jax.training.optimizer import make_optimizer
from croc_jax.training.rng import run_keys
from croc_jax.training.schedules import Schedules, make_schedules

Params = Any


@flax.struct.dataclass
class TrainState:
    """The state of a run; a pytree.

    Attributes:
        step: updates so far.
        student: {"backbone": ..., "head": ...}.
        teacher: alike.
        opt_state: of the student's optimizer.
        center: of the teacher's [CLS] logits.
        center_dense: of its centroid logits.
    """

    step: Int[Array, ""]
    student: dict[str, Params]
    teacher: dict[str, Params]
    opt_state: optax.OptState
    center: Float[Array, " p"]
    center_dense: Float[Array, " p"]


def make_recipe_schedules(recipe: Recipe, *, steps_per_epoch: int) -> Schedules:
    """Returns the schedules of a recipe."""
    return make_schedules(recipe.optimizer, recipe.objective, recipe.schedule, steps_per_epoch=steps_per_epoch)


def make_recipe_optimizer(recipe: Recipe, *, steps_per_epoch: int) -> optax.GradientTransformation:
    """Returns the optimizer of a recipe."""
    return make_optimizer(
        recipe.optimizer,
        make_recipe_schedules(recipe, steps_per_epoch=steps_per_epoch),
        steps_per_epoch=steps_per_epoch,
        norm_last_layer=recipe.head.norm_last_layer,
    )


def init_state(recipe: Recipe, *, steps_per_epoch: int) -> TrainState:
    """Returns the state before the first step; the teacher starts as a copy of the student.

    Pure, so that it can run under `jax.jit` with output shardings or under `jax.eval_shape`.
    """
    init_rng, _ = run_keys(recipe.seed)
    params = init_params(init_networks(recipe), init_rng, crop_size=recipe.data.views.crop_size)
    return state_from_params(recipe, params, steps_per_epoch=steps_per_epoch)


def state_from_params(recipe: Recipe, params: dict[str, Params], *, steps_per_epoch: int) -> TrainState:
    """Returns the state before the first step of a run that starts from given parameters."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        student=params,
        teacher=jax.tree.map(jnp.copy, params),
        opt_state=make_recipe_optimizer(recipe, steps_per_epoch=steps_per_epoch).init(params),
        center=jnp.zeros(recipe.head.num_prototypes),
        center_dense=jnp.zeros(recipe.head.num_prototypes_dense),
    )
