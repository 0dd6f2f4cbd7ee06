"""The watchdog, on synthetic rows."""

import dataclasses
import math
import re

import pytest

from croc_jax.clustering import ClusteringConfig
from croc_jax.losses import ObjectiveConfig
from croc_jax.runtime.collapse import Watchdog, explain_divergence
from croc_jax.training.config import OptimizerConfig, Recipe, flatten, recipe_to_dict
from croc_jax.training.run_config import RuntimeConfig, WatchdogConfig
from tests.training.tiny import STEPS_PER_EPOCH, tiny_recipe

WINDOW = 3
HEALTHY = {
    "teacher_entropy": 1.5,
    "teacher_entropy_c": 0.1,
    "kl": 0.9,
    "kl_c": 0.8,
    "feature_rank": 4.0,
    "feature_spread": 0.3,
    "feature_norm": 2.8,
    "num_clusters": 3.4,
    "valid_fraction": 0.9,
}
# Condition: what a row shows, and words that the warning must have.
COLLAPSED = {
    "uniform": ({"teacher_entropy": math.log(12) * 0.999}, ["for images", "2.482", "teacher_temp=0.035 (now 0.07)"]),
    "uniform_c": ({"teacher_entropy_c": math.log(10)}, ["for clusters", "objective.teacher_temp"]),
    "one_prototype": ({"teacher_entropy": 1e-3, "kl": 0.1}, ["for images", "0.001", "center_momentum=0.8 (now 0.9)"]),
    "one_prototype_c": ({"teacher_entropy_c": 0.0, "kl_c": 0.0}, ["for clusters", "teacher_temp=0.14 (now 0.07)"]),
    "rank": ({"feature_rank": 1.05}, ["feature_rank is 1.05", "base_lr=0.025 (now 0.05)", "warmup_epochs=2 (now 1)"]),
    "spread": ({"feature_spread": 2e-6}, ["2e-06", "weight_decay_end=0.2 (now 0.4)"]),
    "norm": ({"feature_norm": 1e-4}, ["0.0001, below 0.001", "weight_decay_end=0.2"]),
    "two_clusters": ({"num_clusters": 2.01}, ["2.01", "lambda_pos=8 (now 4)"]),
    "few_valid": ({"valid_fraction": 0.1}, ["0.1", "lambda_pos=2 (now 4)"]),
}


def watched(*, window=WINDOW, grace_steps=0, **changes):
    return tiny_recipe(
        runtime=RuntimeConfig(watchdog=WatchdogConfig(window=window, grace_steps=grace_steps)), **changes
    )


def look(rows, recipe=None):
    """Returns the findings at the last row."""
    watchdog = Watchdog(recipe or watched(), steps_per_epoch=STEPS_PER_EPOCH)
    return [watchdog.look({"step": 100 + step, **row}) for step, row in enumerate(rows)][-1]


def conditions(rows, recipe=None):
    return [finding.condition for finding in look(rows, recipe)]


def test_healthy_rows_raise_no_alarm():
    assert conditions([HEALTHY] * WINDOW) == []
    assert conditions([HEALTHY | {"teacher_entropy": 0.0, "teacher_entropy_c": 0.0}] * WINDOW) == []


@pytest.mark.parametrize("condition", COLLAPSED)
def test_each_condition_is_found_alone_and_explained(condition):
    changes, words = COLLAPSED[condition]
    row = HEALTHY | changes
    (finding,) = look([HEALTHY] + [row] * WINDOW)
    assert finding.condition == condition and "\n" not in finding.text
    for word in [*words, ". In a new workdir, try ", "--config."]:
        assert word in finding.text
    assert conditions([row] * (WINDOW - 1)) == conditions([row, HEALTHY, row]) == []
    assert conditions([row] * WINDOW, watched(window=0)) == []


def test_what_would_change_nothing_is_not_advised():
    def advice(condition, **changes):
        (finding,) = look([HEALTHY | COLLAPSED[condition][0]] * WINDOW, watched(**changes))
        return finding.text.partition(". In a new workdir, try ")[2]

    assert advice("few_valid", clustering=ClusteringConfig(k_start=4, k_max=4, lambda_pos=0.0)) == ""
    assert advice("one_prototype", objective=ObjectiveConfig(center_momentum=0.0)).startswith(
        "--config.objective.teacher_temp=0.14"
    )


def test_a_head_that_no_loss_trains_is_not_watched():
    rows = [HEALTHY | COLLAPSED["uniform"][0]] * WINDOW
    assert conditions(rows, watched(objective=ObjectiveConfig(global_weight=0.0))) == []


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_rows_without_a_number_show_nothing(value):
    assert conditions([{name: value for name in HEALTHY}] * WINDOW) == [] and conditions([{}] * WINDOW) == []


def test_runs_without_clusters_or_with_two_at_most_are_not_blamed_for_it():
    rows = [HEALTHY | {"num_clusters": 0, "valid_fraction": 0, "teacher_entropy_c": 0, "kl_c": 0}] * WINDOW
    assert conditions(rows, watched(objective=ObjectiveConfig(alpha=0.0))) == []
    two = [HEALTHY | {"num_clusters": 2.0}] * WINDOW
    assert conditions(two) == ["two_clusters"]
    assert conditions(two, watched(clustering=ClusteringConfig(k_start=2, k_max=2))) == []


def test_a_condition_is_reported_once_and_again_when_it_recurs():
    watchdog = Watchdog(watched(), steps_per_epoch=STEPS_PER_EPOCH)
    low = HEALTHY | {"feature_rank": 1.0}
    found = [len(watchdog.look({"step": 100 + i, **row})) for i, row in enumerate([low] * 6 + [HEALTHY] + [low] * 4)]
    assert found == [0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 0]


@pytest.mark.parametrize("warmup_epochs, first", [(1, 7), (10, 20)])
def test_the_first_steps_and_the_warm_up_are_not_watched(warmup_epochs, first):
    recipe = watched(grace_steps=7)
    recipe = dataclasses.replace(recipe, optimizer=dataclasses.replace(recipe.optimizer, warmup_epochs=warmup_epochs))
    watchdog = Watchdog(recipe, steps_per_epoch=STEPS_PER_EPOCH)
    found = [step for step in range(1, 30) if watchdog.look({"step": step, **HEALTHY, "num_clusters": 2.0})]
    assert found == [first + WINDOW - 1]


def test_the_explanation_of_a_divergence_names_settings_that_exist():
    error = FloatingPointError("step 120: the loss is nan")
    text = explain_divergence(error, Recipe())
    fields, suggested = flatten(recipe_to_dict(Recipe())), dict(re.findall(r"--config\.([\w.]+)=(\w[^\s,]*)", text))
    assert text.startswith("step 120: the loss is nan; ")
    assert set(suggested) == {"optimizer.base_lr", "optimizer.warmup_epochs", "optimizer.clip_norm", "backbone.dtype"}
    assert float(suggested["optimizer.base_lr"]) < fields["optimizer.base_lr"]
    assert "clip_norm" not in explain_divergence(error, Recipe(optimizer=OptimizerConfig(clip_norm=0.3)))
