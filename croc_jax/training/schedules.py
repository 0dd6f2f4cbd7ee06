"""Learning rate, weight decay, teacher momentum and temperature, as functions of the step."""

from typing import NamedTuple

import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array

from croc_jax.losses import ObjectiveConfig
from croc_jax.training.config import Recipe


class Schedules(NamedTuple):
    """Each schedule maps the number of steps taken so far to a scalar.

    Attributes:
        learning_rate: learning rate of AdamW.
        weight_decay: decoupled decay, times the learning rate.
        teacher_momentum: EMA momentum of the teacher's parameters.
        teacher_temp: temperature of the teacher's probabilities.
        frozen_steps: updates during which the last layers are frozen.
        backbone_frozen_steps: updates during which the whole backbone is frozen.
    """

    learning_rate: optax.Schedule
    weight_decay: optax.Schedule
    teacher_momentum: optax.Schedule
    teacher_temp: optax.Schedule
    frozen_steps: int
    backbone_frozen_steps: int


def make_schedules(recipe: Recipe, *, steps_per_epoch: int) -> Schedules:
    """Returns the schedules of a run (the official `cosine_scheduler` and temperature table).

    Examples:
        >>> schedules = make_schedules(Recipe(), steps_per_epoch=100)
        >>> [round(float(schedules.learning_rate(step)), 6) for step in (0, 999, 30_000)]
        [0.0, 0.0005, 1e-06]
        >>> [round(float(schedules.teacher_momentum(step)), 3) for step in (0, 15_000, 30_000)]
        [0.996, 0.998, 1.0]

    Args:
        recipe: settings of the run.
        steps_per_epoch: updates an epoch.

    Raises:
        ValueError: if the warm-up is longer than the run, or the backbone is frozen to the end.
    """
    optimizer, schedule = recipe.optimizer, recipe.schedule
    total, warmup = schedule.epochs * steps_per_epoch, optimizer.warmup_epochs * steps_per_epoch
    if warmup > total:
        raise ValueError(
            f"optimizer.warmup_epochs={optimizer.warmup_epochs}: more than schedule.epochs={schedule.epochs}"
        )
    backbone_frozen_steps = round(optimizer.freeze_backbone_epochs * steps_per_epoch)
    if not 0 <= backbone_frozen_steps < total:
        raise ValueError(
            f"optimizer.freeze_backbone_epochs={optimizer.freeze_backbone_epochs}: choose 0 or more, and less "
            f"than schedule.epochs={schedule.epochs}, or the backbone never trains"
        )
    peak = optimizer.base_lr * schedule.batch_size / 256
    decay = optax.cosine_decay_schedule(peak, max(total - warmup, 1), alpha=optimizer.min_lr / peak)
    # The warm-up reaches the peak on its last step, as numpy.linspace does.
    rise = optax.linear_schedule(0.0, peak, max(warmup - 1, 1))
    return Schedules(
        learning_rate=optax.join_schedules([rise, decay], [warmup]) if warmup else decay,
        weight_decay=_cosine(optimizer.weight_decay, optimizer.weight_decay_end, total),
        teacher_momentum=_cosine(optimizer.teacher_momentum, 1.0, total),
        teacher_temp=_by_epoch(recipe.objective, steps_per_epoch),
        frozen_steps=optimizer.freeze_last_layer_epochs * steps_per_epoch,
        backbone_frozen_steps=backbone_frozen_steps,
    )


def _cosine(start: float, end: float, steps: int) -> optax.Schedule:
    # Written as a distance from the end, because a momentum near 1 has few digits below it.
    shape = optax.cosine_decay_schedule(1.0, steps)
    return lambda step: end + (start - end) * shape(step)


def _by_epoch(objective: ObjectiveConfig, steps_per_epoch: int) -> optax.Schedule:
    """The temperature stays the same within an epoch and rises linearly to the last of the warm-up."""
    start, end = objective.warmup_teacher_temp, objective.teacher_temp
    epochs = objective.warmup_teacher_temp_epochs

    def teacher_temp(step: ArrayLike) -> Array:
        epoch = jnp.asarray(step) // steps_per_epoch
        warm = start + (end - start) * jnp.minimum(epoch / max(epochs - 1, 1), 1.0)
        return jnp.where(epoch < epochs, warm, end)

    return teacher_temp
