"""The watchdog, on made rows."""

import dataclasses
import math

import pytest

from croc_jax.clustering import ClusteringConfig
from croc_jax.losses import ObjectiveConfig
from croc_jax.runtime.collapse import Watchdog, describe_findings, find_collapse, first_step
from croc_jax.training.config import RecipeError, RuntimeConfig, WatchdogConfig, recipe_from_dict
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
ILL = {
    "uniform": ({"teacher_entropy": math.log(12) * 0.999}, ["of images", "2.482", "2.485", "12 prototypes", "0.035"]),
    "uniform_c": ({"teacher_entropy_c": math.log(10)}, ["of clusters", "10 prototypes", "objective.teacher_temp"]),
    "one_prototype": ({"teacher_entropy": 1e-3, "kl": 0.1}, ["of images", "0.0010", "center_momentum=0.8 (now 0.9)"]),
    "one_prototype_c": ({"teacher_entropy_c": 0.0, "kl_c": 0.0}, ["of clusters", "teacher_temp=0.14 (now 0.07)"]),
    "rank": ({"feature_rank": 1.05}, ["feature_rank is 1.05", "base_lr=0.025 (now 0.05)", "warmup_epochs=2 (now 1)"]),
    "spread": ({"feature_spread": 2e-6}, ["2e-06", "weight_decay_end=0.2 (now 0.4)"]),
    "norm": ({"feature_norm": 1e-4}, ["0.0001, below 0.001", "weight_decay_end=0.2"]),
    "two_clusters": ({"num_clusters": 2.01}, ["2.01", "of 4 at", "lambda_pos=8 (now 4)", "now values"]),
    "few_valid": ({"valid_fraction": 0.1}, ["0.100", "lambda_pos=2 (now 4)", "data.views.scale='(0.625, 1)'"]),
}


def watched(*, window=WINDOW, grace_steps=0, stop=False, **changes):
    watchdog = WatchdogConfig(window=window, grace_steps=grace_steps, stop_on_collapse=stop)
    return tiny_recipe(runtime=RuntimeConfig(watchdog=watchdog), **changes)


def conditions(rows, recipe=None):
    return [finding.condition for finding in find_collapse(rows, recipe or watched())]


def test_healthy_rows_raise_no_alarm():
    assert conditions([HEALTHY] * 10) == []


@pytest.mark.parametrize("condition", ILL)
def test_each_condition_is_found_alone_and_explained(condition):
    changes, words = ILL[condition]
    (finding,) = find_collapse([HEALTHY | changes] * WINDOW, watched())
    assert finding.condition == condition
    for word in words:
        assert word in finding.text
    assert ". In a new workdir, try " in finding.text and "--config." in finding.text and "\n" not in finding.text


def advice(condition, **changes):
    (finding,) = find_collapse([HEALTHY | ILL[condition][0]] * WINDOW, watched(**changes))
    return finding.text.partition(". In a new workdir, try ")[2]


def test_what_would_change_nothing_is_not_advised():
    for weight in (0.0, math.inf):
        clustering = ClusteringConfig(k_start=4, k_max=4, lambda_pos=weight)
        assert "lambda_pos" not in advice("few_valid", clustering=clustering)
        assert ("lambda_pos=1 (now 0), so" in advice("two_clusters", clustering=clustering)) == (weight == 0)
    assert advice("one_prototype", objective=ObjectiveConfig(center_momentum=0.0)).startswith(
        "--config.objective.teacher_temp=0.14"
    )
    optimizer = dataclasses.replace(tiny_recipe().optimizer, weight_decay_end=0.0)
    assert advice("spread", optimizer=optimizer) == "--config.optimizer.base_lr=0.025 (now 0.05)"
    assert advice("norm", optimizer=optimizer) == ""


@pytest.mark.parametrize("condition", ILL)
def test_one_healthy_row_or_a_short_window_is_no_collapse(condition):
    ill = HEALTHY | ILL[condition][0]
    assert conditions([ill] * (WINDOW - 1)) == []
    assert conditions([ill, HEALTHY, ill]) == []
    assert conditions([HEALTHY] + [ill] * WINDOW) == [condition]
    assert conditions([ill] * WINDOW, watched(window=0)) == []


def test_a_sure_teacher_that_is_hard_to_follow_is_healthy():
    assert conditions([HEALTHY | {"teacher_entropy": 0.0, "teacher_entropy_c": 0.0}] * WINDOW) == []


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_rows_without_a_number_show_nothing(value):
    broken = {name: value for name in HEALTHY}
    assert conditions([broken] * WINDOW) == [] and conditions([{"step": 1}] * WINDOW) == []


def test_runs_without_clusters_or_with_two_at_most_are_not_blamed_for_it():
    rows = [HEALTHY | {"num_clusters": 0, "valid_fraction": 0, "teacher_entropy_c": 0, "kl_c": 0}] * WINDOW
    assert conditions(rows, watched(objective=ObjectiveConfig(alpha=0.0))) == []
    two = [HEALTHY | {"num_clusters": 2.0}] * WINDOW
    assert conditions(two) == ["two_clusters"]
    assert conditions(two, watched(clustering=ClusteringConfig(k_start=2, k_max=2))) == []


def test_a_condition_is_told_once_and_again_when_it_recurs():
    watchdog = Watchdog(watched(), steps_per_epoch=STEPS_PER_EPOCH)
    ill = HEALTHY | {"feature_rank": 1.0}
    rows = [ill] * 6 + [HEALTHY] + [ill] * 4
    told = [len(watchdog.look({"step": 100 + step, **row})) for step, row in enumerate(rows)]
    assert told == [0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 0]


def test_the_first_steps_and_the_warm_up_are_not_watched():
    recipe = watched(grace_steps=7)
    assert first_step(recipe, steps_per_epoch=STEPS_PER_EPOCH) == 7
    longer = dataclasses.replace(recipe, optimizer=dataclasses.replace(recipe.optimizer, warmup_epochs=10))
    assert first_step(longer, steps_per_epoch=STEPS_PER_EPOCH) == 20
    watchdog = Watchdog(recipe, steps_per_epoch=STEPS_PER_EPOCH)
    told = [len(watchdog.look({"step": step, **HEALTHY, "num_clusters": 2.0})) for step in range(1, 12)]
    assert [step for step, count in enumerate(told, 1) if count] == [9]


def test_warnings_can_be_told_again_from_the_rows():
    steps = (1, *range(500, 2100, 100))
    rows = [{"step": step, "epoch": step / 2, **HEALTHY, "feature_rank": 1.0 + (step < 1500)} for step in steps]
    (sentence,) = describe_findings(rows, watched())
    assert (
        sentence.startswith("Warning at step 1,700: the teacher's [CLS] tokens lie on a line") and sentence[-1] == "."
    )
    assert describe_findings(rows[:8], watched()) == describe_findings([], watched()) == []


@pytest.mark.parametrize(
    "field, value, reason",
    [
        ("window", -1, "0 or more"),
        ("uniform_entropy", 1.5, "a share, from 0 to 1"),
        ("min_feature_rank", math.nan, "0 or more"),
        ("min_num_clusters", -1.0, "0 or more"),
    ],
)
def test_thresholds_that_cannot_work_are_refused(field, value, reason):
    with pytest.raises(RecipeError, match=rf"runtime.watchdog.{field}={value}: .*{reason}"):
        recipe_from_dict({"runtime": {"watchdog": {field: value}}})
