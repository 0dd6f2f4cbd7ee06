"""AdamW with gradients clipped tensor by tensor and last layers that thaw late."""

import math
from collections.abc import Hashable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from croc_jax.training.config import OptimizerConfig
from croc_jax.training.schedules import Schedules

Params = Any


def make_optimizer(
    config: OptimizerConfig, schedules: Schedules, *, steps_per_epoch: int, norm_last_layer: bool
) -> optax.GradientTransformation:
    """Returns the student's optimizer.

    While the last layers rest, nothing of them changes, not even Adam's step count.

    Args:
        config: clipping and freezing.
        schedules: learning rate and decay, of the run's step.
        steps_per_epoch: updates an epoch.
        norm_last_layer: never update the weight norm's scale.
    """
    frozen_steps = config.freeze_last_layer_epochs * steps_per_epoch
    # The thawed layers count their own steps; their schedules go on from the run's.
    thawed = optax.transforms.conditionally_mask(_adamw(schedules, start=frozen_steps), _at_least(frozen_steps))
    branches: dict[Hashable, optax.GradientTransformation] = {
        "always": _adamw(schedules, start=0),
        "late": thawed,
        "never": optax.set_to_zero(),
    }
    partition = optax.transforms.partition(branches, lambda params: _label(params, norm_last_layer))
    return optax.chain(clip_each(config.clip_norm), partition) if config.clip_norm else partition


def _at_least(first: int) -> Any:
    return lambda step: step >= first


def _adamw(schedules: Schedules, *, start: int) -> optax.GradientTransformation:
    def later(schedule: optax.Schedule) -> optax.Schedule:
        return lambda step: schedule(step + start)

    return optax.chain(
        scale_by_exact_adam(),
        optax.add_decayed_weights(later(schedules.weight_decay), mask=decays),
        optax.scale_by_learning_rate(later(schedules.learning_rate)),
    )


def scale_by_exact_adam(b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> optax.GradientTransformation:
    """Returns Adam's direction, with bias corrections that are exact to float32.

    `optax.scale_by_adam` takes 1 - b2^t in float32, which at first is wrong by 1e-5 of itself: an
    error a hundred times that of all other rounding, and along the gradient in every parameter.
    """
    reference = optax.scale_by_adam(b1=b1, b2=b2, eps=eps)

    def update(gradients: Params, state: Any, params: Params = None) -> tuple[Params, Any]:
        count = optax.safe_increment(state.count)
        mu = optax.tree.update_moment(gradients, state.mu, b1, 1)
        nu = optax.tree.update_moment(gradients, state.nu, b2, 2)
        first, second = (-jnp.expm1(count * math.log(decay)) for decay in (b1, b2))
        direction = jax.tree.map(lambda m, v: (m / first) / (jnp.sqrt(v / second) + eps), mu, nu)
        return direction, optax.ScaleByAdamState(count=count, mu=mu, nu=nu)

    return optax.GradientTransformation(reference.init, update)  # pyright: ignore[reportArgumentType]


def decays(params: Params) -> Any:
    """Returns which parameters decay: all but biases and norms, which have one dimension."""
    return jax.tree.map(lambda param: param.ndim >= 2, params)


def clip_each(max_norm: float) -> optax.GradientTransformation:
    """Scales down each tensor's gradient whose norm exceeds `max_norm` (official `clip_grad`)."""

    def clip(gradient: jax.Array) -> jax.Array:
        return gradient * jnp.minimum(1.0, max_norm / (jnp.linalg.norm(gradient) + 1e-6))

    return optax.stateless(lambda gradients, _: jax.tree.map(clip, gradients))


def _label(params: Params, norm_last_layer: bool) -> Any:
    def label(path: tuple, _: jax.Array) -> str:
        names = [entry.key for entry in path if hasattr(entry, "key")]
        if not any(name.startswith("last_layer") for name in names):
            return "always"
        return "never" if norm_last_layer and names[-1] == "scale" else "late"

    return jax.tree_util.tree_map_with_path(label, params)
