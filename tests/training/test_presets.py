"""Presets by the number of images: which one is chosen, what wins over it, and that its reasons fit its numbers."""

import json
import math
import re

import pytest

from croc_jax.training import resolve
from croc_jax.training.config import Recipe, RecipeError, flatten, recipe_from_dict, recipe_to_dict
from croc_jax.training.presets import PRESETS, SOURCES, explain_preset, nearest_preset
from tests.launch.test_configs import load
from tests.training.test_resolve import read

# The images that the numbers of updates are of; the published settings are those of COCO and ImageNet.
COUNTED = {"1k": 1_000, "10k": 10_000, "100k": 118_287, "1m": 1_281_167}


@pytest.mark.parametrize(
    ("least", "most", "name"),
    [(317, 3_162, "1k"), (3_163, 31_622, "10k"), (31_623, 316_227, "100k"), (316_228, 3_162_277, "1m")],
)
def test_the_nearest_preset_on_a_logarithmic_scale(least, most, name):
    assert PRESETS[name].bounds == (least, most)
    for count in (least, most):
        assert nearest_preset(count) == name
        assert min(PRESETS, key=lambda one: abs(math.log(count / PRESETS[one].images))) == name
    assert nearest_preset(10**9) == "1m"


@pytest.mark.parametrize("count", [0, 316])
def test_too_few_images_are_an_error_with_remedies(count):
    with pytest.raises(
        ValueError, match=rf"^preset=auto: {count} images, .* 317 or more: .*post_training.*presets.py:1k"
    ):
        nearest_preset(count)


def updates(name):
    values = PRESETS[name].values
    an_epoch = COUNTED[name] // values["schedule.batch_size"]
    return an_epoch, an_epoch * values["schedule.epochs"]


@pytest.mark.parametrize("name", PRESETS)
def test_numbers_in_reasons_follow_from_the_settings(name):
    choices, (an_epoch, total) = PRESETS[name].choices, updates(name)
    stated = {
        field: int(number.replace(",", ""))
        for field, choice in choices.items()
        if (number := (re.findall(r"(?:half-life of )?([\d,]+) updates", choice.reason) or [""])[0])
    }
    momentum = choices["optimizer.teacher_momentum"].value
    half_life = math.log(0.5) / math.log(momentum)
    assert stated.pop("optimizer.teacher_momentum") == round(half_life)
    share = float(re.findall(r"([\d.]+)% of the run", choices["optimizer.teacher_momentum"].reason)[0])
    assert share == pytest.approx(100 * half_life / total, rel=0.25)
    assert stated.pop("schedule.epochs") == pytest.approx(total, rel=0.005)
    for field, number in stated.items():
        assert number == an_epoch * (1 if field == "schedule.batch_size" else choices[field].value), field
    warmup, epochs = choices["optimizer.warmup_epochs"], choices["schedule.epochs"].value
    (share,) = re.findall(r"(a tenth|an eighth|3%) of the run", warmup.reason)
    expected = {"a tenth": epochs / 10, "an eighth": epochs / 8, "3%": epochs / 30}[share]
    assert warmup.value == expected


@pytest.mark.parametrize("name", ["1k", "10k"])
def test_learning_rates_in_reasons_are_those_of_the_batch(name):
    values, choices = PRESETS[name].values, PRESETS[name].choices
    rate, batch_size = re.findall(r"^(\S+) at a batch of (\d+)", choices["optimizer.base_lr"].reason)[0]
    assert int(batch_size) == values["schedule.batch_size"]
    assert float(rate) == pytest.approx(values["optimizer.base_lr"] * int(batch_size) / 256)


def test_sources_are_those_that_reasons_cite():
    reasons = [choice.reason for preset in PRESETS.values() for choice in preset.choices.values()]
    assert all(reasons) and not any(reason.endswith(".") for reason in reasons)
    assert set(re.findall(r"\[(.+?)\]", " ".join(reasons))) == set(SOURCES)


@pytest.fixture
def images(monkeypatch):
    """Sets the number of images that there are; without, they must not be counted."""
    monkeypatch.setattr(resolve, "open_data", lambda _: pytest.fail("counted"))
    return lambda count: monkeypatch.setattr(resolve, "open_data", lambda _: range(count))


AUTO = {"preset": "auto", "data.folders": ("photos",)}


@pytest.mark.parametrize("name", PRESETS)
def test_auto_equals_the_preset_that_it_chooses(images, name):
    images(PRESETS[name].images)
    config = load("presets").get_config(name)
    config.data.folders = ("photos",)
    assert read(in_file=AUTO) == recipe_from_dict(config.to_dict())


def test_explicit_settings_win_over_the_preset(images):
    images(9_462)
    # In a config file, a default is no choice; on the command line, it is one.
    recipe = read(
        in_file=AUTO | {"optimizer.base_lr": 1e-3, "seed": 7}, schedule__epochs=300, backbone__drop_path_rate=0.1
    )
    assert (recipe.preset, recipe.seed, recipe.data.folders) == ("10k", 7, ("photos",))
    assert (recipe.optimizer.base_lr, recipe.schedule.epochs, recipe.backbone.drop_path_rate) == (1e-3, 300, 0.1)
    kept = {field: flatten(recipe_to_dict(recipe))[field] for field in PRESETS["10k"].values}
    assert kept == PRESETS["10k"].values | {
        "optimizer.base_lr": 1e-3, "schedule.epochs": 300, "backbone.drop_path_rate": 0.1
    }  # fmt: skip
    lines = explain_preset(recipe.preset, flatten(recipe_to_dict(recipe)), num_images=9_462)
    assert lines[0] == "preset 10k, for 3,163 to 31,622 images: there are 9,462"
    assert "  schedule.epochs = 300: given; the preset has 8" in lines
    reason = PRESETS["10k"].choices["head.num_prototypes"].reason
    assert f"  head.num_prototypes = 512: {reason}" in lines and len(lines) == 2 + len(PRESETS["10k"].choices)


def test_a_resumed_run_keeps_its_preset_and_counts_no_images(images):
    images(3_000)
    begun = read(in_file=AUTO, seed=1)
    saved = recipe_from_dict(json.loads(json.dumps(recipe_to_dict(begun))))
    images(4_000)
    assert read(in_file=AUTO, seed=1).preset == "10k"
    assert read(in_file=AUTO, seed=1, saved=saved) == begun and begun.preset == "1k"
    # A run without a preset gets one as a new run does, and is then refused.
    assert read(in_file=AUTO, saved=Recipe()).preset == "10k"
    first = explain_preset("1k", flatten(recipe_to_dict(begun)), num_images=4_000)[0]
    assert first.endswith("there are 4,000; --config=configs/presets.py:10k is nearer")


def test_a_named_preset_counts_no_images_and_others_than_config_files_name_none(images):
    assert read(in_file={"preset": "1k"}).preset == "1k"
    with pytest.raises(RecipeError, match="preset='10k': give --config=configs/presets.py:10k instead"):
        read(preset="10k")
    with pytest.raises(RecipeError, match="preset='2k': choose one of 1k, 10k, 100k, 1m"):
        recipe_from_dict({"preset": "2k"})
