"""Learning rate, weight decay, teacher momentum and temperature, as functions of the step."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from croc_jax.losses import ObjectiveConfig
from croc_jax.training.config import OptimizerConfig, ScheduleConfig


class Schedules(NamedTuple):
    """Each maps the number of steps taken so far to a scalar."""

    learning_rate: optax.Schedule
    weight_decay: optax.Schedule
    teacher_momentum: optax.Schedule
    teacher_temp: optax.Schedule


def make_schedules(
    optimizer: OptimizerConfig, objective: ObjectiveConfig, schedule: ScheduleConfig, *, steps_per_epoch: int
) -> Schedules:
    """Returns the schedules of a run (the official `cosine_scheduler` and temperature table).

    Raises:
        ValueError: if the warm-up is longer than the run.
    """
    total, warmup = schedule.epochs * steps_per_epoch, optimizer.warmup_epochs * steps_per_epoch
    if warmup > total:
        raise ValueError(
            f"optimizer.warmup_epochs={optimizer.warmup_epochs}: more than schedule.epochs={schedule.epochs}"
        )
    peak = optimizer.base_lr * schedule.batch_size / 256
    decay = optax.cosine_decay_schedule(peak, max(total - warmup, 1), alpha=optimizer.min_lr / peak)
    # The warm-up reaches the peak on its last step, as numpy.linspace does.
    rise = optax.linear_schedule(0.0, peak, max(warmup - 1, 1))
    return Schedules(
        learning_rate=optax.join_schedules([rise, decay], [warmup]) if warmup else decay,
        weight_decay=_cosine(optimizer.weight_decay, optimizer.weight_decay_end, total),
        teacher_momentum=_cosine(optimizer.teacher_momentum, 1.0, total),
        teacher_temp=_by_epoch(objective, steps_per_epoch),
    )


def _cosine(start: float, end: float, steps: int) -> optax.Schedule:
    # Written as a distance from the end, because a momentum near 1 has few digits below it.
    shape = optax.cosine_decay_schedule(1.0, steps)
    return lambda step: end + (start - end) * shape(step)


def _by_epoch(objective: ObjectiveConfig, steps_per_epoch: int) -> optax.Schedule:
    """The temperature stays the same within an epoch and rises linearly to the last of the warm-up."""
    start, end = objective.warmup_teacher_temp, objective.teacher_temp
    epochs = objective.warmup_teacher_temp_epochs

    def teacher_temp(step: Any) -> jax.Array:
        progress = (step // steps_per_epoch) / max(epochs - 1, 1)
        warm = start + (end - start) * jnp.minimum(progress, 1.0)
        return jnp.where(step // steps_per_epoch < epochs, warm, end)

    return teacher_temp
