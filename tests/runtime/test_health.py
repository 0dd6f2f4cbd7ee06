"""Numbers that are not finite are found, named and explained."""

import math
import re
from pathlib import Path

import jax.numpy as jnp
import pytest

from croc_jax.runtime.health import NonFiniteError, check_losses, check_state, explain
from croc_jax.training.config import OptimizerConfig, Recipe, flatten, recipe_to_dict


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_raised_with_its_step_and_parts(value):
    metrics = {"loss": value, "loss_dense": value, "loss_global": 2.5, "lr": 0.1}
    with pytest.raises(NonFiniteError) as failure:
        check_losses(17, metrics)
    assert failure.value.step == 17
    assert str(failure.value) == f"step 17: the loss is {value} (loss_dense {value}, loss_global 2.5)"


def test_a_finite_loss_passes():
    assert check_losses(1, {"loss": 1e30, "valid_fraction": math.nan}) is None


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_one_bad_value_of_a_state_is_found_and_its_tensor_named(value):
    state = {"step": jnp.int32(2), "student": {"kernel": jnp.ones((40, 50)), "bias": jnp.zeros(3)}}
    assert check_state(9, state) is None
    state["student"]["kernel"] = state["student"]["kernel"].at[39, 49].set(value)
    with pytest.raises(NonFiniteError, match="step 9: student/kernel has values that are not finite"):
        check_state(9, state)


def advice(recipe, last_good=None):
    return explain(NonFiniteError(120, "the loss is nan"), recipe, last_good=last_good)


def test_the_explanation_names_step_checkpoint_and_real_settings():
    text = advice(Recipe(), Path("runs/x/checkpoints/100"))
    assert "step 120: the loss is nan" in text and "runs/x/checkpoints/100" in text
    fields = flatten(recipe_to_dict(Recipe()))
    suggested = dict(re.findall(r"--config\.(\S+)=(\S+)", text))
    assert set(suggested) <= set(fields) and len(suggested) >= 3
    assert float(suggested["optimizer.base_lr"]) < fields["optimizer.base_lr"]
    assert float(suggested["optimizer.warmup_epochs"]) > fields["optimizer.warmup_epochs"]


def test_the_explanation_does_not_suggest_what_is_set_already():
    text = advice(Recipe(optimizer=OptimizerConfig(clip_norm=0.3)))
    assert "clip_norm" not in text and "There is no checkpoint yet" in text
