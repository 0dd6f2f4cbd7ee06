"""The schedules against tables made with NumPy in float64."""

import numpy as np
import pytest

from croc_jax.losses import ObjectiveConfig
from croc_jax.training.config import OptimizerConfig, Recipe, ScheduleConfig
from croc_jax.training.schedules import make_schedules


def cosine_table(start, end, steps, warmup=0):
    decay = np.arange(steps - warmup) / max(steps - warmup, 1)
    return np.concatenate([np.linspace(0, start, warmup), end + 0.5 * (start - end) * (1 + np.cos(np.pi * decay))])


@pytest.mark.parametrize(("epochs", "warmup", "steps_per_epoch"), [(5, 2, 7), (3, 0, 4), (4, 1, 1)])
def test_every_step_equals_the_table(epochs, warmup, steps_per_epoch):
    recipe = Recipe(
        optimizer=OptimizerConfig(base_lr=1e-3, warmup_epochs=warmup, min_lr=1e-6, freeze_last_layer_epochs=2),
        objective=ObjectiveConfig(warmup_teacher_temp=0.04, teacher_temp=0.07, warmup_teacher_temp_epochs=2),
        schedule=ScheduleConfig(epochs=epochs, batch_size=512),
    )
    schedules = make_schedules(recipe, steps_per_epoch=steps_per_epoch)
    steps = epochs * steps_per_epoch
    temps = np.repeat(np.r_[np.linspace(0.04, 0.07, 2), np.full(epochs - 2, 0.07)], steps_per_epoch)
    tables = {
        "learning_rate": cosine_table(2e-3, 1e-6, steps, warmup * steps_per_epoch),
        "weight_decay": cosine_table(0.04, 0.4, steps),
        "teacher_momentum": cosine_table(0.996, 1.0, steps),
        "teacher_temp": temps,
    }
    for name, table in tables.items():
        values = [float(getattr(schedules, name)(step)) for step in range(steps)]
        np.testing.assert_allclose(values, table, rtol=1e-5, atol=1e-9, err_msg=name)
    assert schedules.frozen_steps == 2 * steps_per_epoch


def test_warmup_longer_than_the_run_is_named():
    recipe = Recipe(schedule=ScheduleConfig(epochs=5, batch_size=8))
    with pytest.raises(ValueError, match=r"warmup_epochs=10.*epochs=5"):
        make_schedules(recipe, steps_per_epoch=2)
