"""AdamW with gradients clipped tensor by tensor, and what of a network is frozen, at first or for good."""

import math
from collections.abc import Callable, Hashable, Sequence

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from croc_jax.training.config import Recipe
from croc_jax.training.schedules import Schedules


def make_optimizer(recipe: Recipe, schedules: Schedules) -> optax.GradientTransformation:
    """Returns the student's optimizer.

    What is frozen gets no update, no decay and no Adam step: the last layers or the whole backbone at first, the lower
    blocks for good.

    Args:
        recipe: settings of the run: clipping, frozen blocks, and whether the weight norm's scale is never updated.
        schedules: learning rate and decay as functions of the run's step, and the steps of freezing.
    """
    branches: dict[Hashable, optax.GradientTransformation] = {
        "always": _adamw(schedules, start=0),
        "late": _late_adamw(schedules, start=schedules.frozen_steps),
        "never": optax.set_to_zero(),
    }
    backbone = "always"
    if schedules.backbone_frozen_steps:
        backbone = "backbone"
        branches[backbone] = _late_adamw(schedules, start=schedules.backbone_frozen_steps)
    partition = optax.transforms.partition(branches, lambda params: _label(params, recipe, backbone))
    clip_norm = recipe.optimizer.clip_norm
    return optax.chain(clip_each(clip_norm), partition) if clip_norm else partition


def _late_adamw(schedules: Schedules, *, start: int) -> optax.GradientTransformation:
    # It counts its own steps; its schedules continue from the run's.
    return optax.transforms.conditionally_mask(_adamw(schedules, start=start), _at_least(start))


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


def stop_frozen_gradients(params: PyTree, frozen_blocks: int) -> PyTree:
    """Returns the parameters of a network, with no gradient to those that are frozen for good.

    Args:
        params: {"backbone": ..., "head": ...}.
        frozen_blocks: blocks of a transformer that are frozen, with all that comes before them.
    """

    def stop(path: tuple, param: Array) -> Array:
        return jax.lax.stop_gradient(param) if _is_frozen(_names(path), frozen_blocks) else param

    return jax.tree_util.tree_map_with_path(stop, params) if frozen_blocks else params


def _is_frozen(names: Sequence[str], frozen_blocks: int) -> bool:
    """Says whether a parameter lies in the first blocks of a transformer, or before them."""
    if frozen_blocks and names[0] == "mask_token":
        return True
    if not frozen_blocks or names[0] != "backbone" or names[1] == "norm":
        return False
    part, _, index = names[1].partition("block_")
    return bool(part) or int(index) < frozen_blocks


def _names(path: tuple) -> list[str]:
    return [entry.key for entry in path if hasattr(entry, "key")]


def _label(params: PyTree, recipe: Recipe, backbone: str) -> PyTree:
    def label(path: tuple, _: Array) -> str:
        names = _names(path)
        if _is_frozen(names, recipe.optimizer.frozen_blocks):
            return "never"
        if not any(name.startswith("last_layer") for name in names):
            return "always" if names[0] == "head" else backbone
        return "never" if recipe.head.norm_last_layer and names[-1] == "scale" else "late"

    return jax.tree_util.tree_map_with_path(label, params)
