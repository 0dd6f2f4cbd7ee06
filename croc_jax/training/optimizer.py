"""AdamW with gradients clipped tensor by tensor and last layers that are frozen at first."""

import math
from collections.abc import Callable, Hashable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from croc_jax.training.config import Recipe
from croc_jax.training.schedules import Schedules


def make_optimizer(recipe: Recipe, schedules: Schedules) -> optax.GradientTransformation:
    """Returns the student's optimizer.

    While the last layers are frozen, they get no update, no decay and no Adam step.

    Args:
        recipe: settings of the run: clipping, and whether the weight norm's scale is never updated.
        schedules: learning rate and decay as functions of the run's step, and the steps of freezing.
    """
    start = schedules.frozen_steps
    # The last layers count their own steps; their schedules continue from the run's.
    late = optax.transforms.conditionally_mask(_adamw(schedules, start=start), _at_least(start))
    branches: dict[Hashable, optax.GradientTransformation] = {
        "always": _adamw(schedules, start=0),
        "late": late,
        "never": optax.set_to_zero(),
    }
    partition = optax.transforms.partition(branches, lambda params: _label(params, recipe.head.norm_last_layer))
    clip_norm = recipe.optimizer.clip_norm
    return optax.chain(clip_each(clip_norm), partition) if clip_norm else partition


def _at_least(first: int) -> Callable[..., Array]:
    return lambda step: step >= first


def _adamw(schedules: Schedules, *, start: int) -> optax.GradientTransformation:
    def shifted(schedule: optax.Schedule) -> optax.Schedule:
        return lambda step: schedule(step + start)

    return optax.chain(
        scale_by_exact_adam(),
        optax.add_decayed_weights(shifted(schedules.weight_decay), mask=decays),
        optax.scale_by_learning_rate(shifted(schedules.learning_rate)),
    )


def scale_by_exact_adam(b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> optax.GradientTransformation:
    """Returns Adam's direction, with bias corrections that are exact to float32.

    `optax.scale_by_adam` takes 1 - b2^t in float32, which at first is wrong by 1e-5 of itself: an
    error a hundred times that of all other rounding, and along the gradient in every parameter.
    """
    reference = optax.scale_by_adam(b1=b1, b2=b2, eps=eps)

    def update(
        gradients: PyTree, state: optax.ScaleByAdamState, params: PyTree = None
    ) -> tuple[PyTree, optax.ScaleByAdamState]:
        count = optax.safe_increment(state.count)
        mu = optax.tree.update_moment(gradients, state.mu, b1, 1)
        nu = optax.tree.update_moment(gradients, state.nu, b2, 2)
        first, second = (-jnp.expm1(count * math.log(decay)) for decay in (b1, b2))
        direction = jax.tree.map(lambda m, v: (m / first) / (jnp.sqrt(v / second) + eps), mu, nu)
        return direction, optax.ScaleByAdamState(count=count, mu=mu, nu=nu)

    return optax.GradientTransformation(reference.init, update)  # pyright: ignore[reportArgumentType]


def decays(params: PyTree) -> PyTree:
    """Returns which parameters decay: all but biases and norms, which have one dimension."""
    return jax.tree.map(lambda param: param.ndim >= 2, params)


def clip_each(max_norm: float) -> optax.GradientTransformation:
    """Scales down each tensor's gradient whose norm exceeds `max_norm` (official `clip_grad`)."""

    def clip(gradient: Array) -> Array:
        return gradient * jnp.minimum(1.0, max_norm / (jnp.linalg.norm(gradient) + 1e-6))

    return optax.stateless(lambda gradients, _: jax.tree.map(clip, gradients))


def _label(params: PyTree, norm_last_layer: bool) -> PyTree:
    def label(path: tuple, _: Array) -> str:
        names = [entry.key for entry in path if hasattr(entry, "key")]
        if not any(name.startswith("last_layer") for name in names):
            return "always"
        return "never" if norm_last_layer and names[-1] == "scale" else "late"

    return jax.tree_util.tree_map_with_path(label, params)
