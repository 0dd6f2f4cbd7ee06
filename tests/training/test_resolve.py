"""A file of statistics in a configuration: its values reach the recipe, and nothing contradicts them."""

import json
import re

import pytest
from absl import flags
from ml_collections import config_flags

from croc_jax.data.statistics import Statistics, write_statistics
from croc_jax.runtime.workdir import differing_fields
from croc_jax.training.config import RecipeError, recipe_from_dict, recipe_to_dict
from croc_jax.training.config_dict import recipe_config
from croc_jax.training.resolve import recipe_from_config

OF = {
    "percentiles": (0.5, 99.5), "images": 1, "total": 1, "pixels": 1, "window": 0, "sources": (), "digest": "",
    "version": "",
}  # fmt: skip
BANDS = Statistics(channels=2, dtype="uint16", range=(0, 9, 1, 8), mean=(0.25, 0.5), std=(0.125, 0.25), **OF)


@pytest.fixture
def file(tmp_path):
    write_statistics(tmp_path / "bands.json", BANDS)
    return str(tmp_path / "bands.json")


def read(saved=None, in_file=(), **overrides):
    """Returns the recipe of a config file that sets some fields, with others from the command line; "__" is a dot."""
    config = recipe_config()
    config.update_from_flattened_dict(dict(in_file))
    argv = ["", *(f"--config.{name.replace('__', '.')}={value}" for name, value in overrides.items())]
    values = flags.FlagValues()
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
    values(argv)
    given = config_flags.get_override_values(values["config"])
    return recipe_from_config(values.config.to_dict(), given=given, saved=saved)


def check(recipe, path):
    data, backbone = recipe.data, recipe.backbone
    assert (data.channels, data.dtype, data.range, data.statistics) == (2, "uint16", (0.0, 9.0, 1.0, 8.0), path)
    assert (backbone.image_mean, backbone.image_std) == (BANDS.mean, BANDS.std)


def test_the_values_of_the_file_reach_the_recipe(file):
    recipe = read(data__statistics=file)
    check(recipe, file)
    check(read(in_file={"data.statistics": file}), file)
    # The recipe stands for itself.
    assert recipe_from_dict(json.loads(json.dumps(recipe_to_dict(recipe)))) == recipe
    # Without a file, nothing changes.
    assert read() == recipe_from_dict({}) and read(in_file={"seed": 3}) == recipe_from_dict({"seed": 3})


def test_a_file_on_the_command_line_replaces_values_of_the_config_file(file, tmp_path):
    others = {"data.channels": 1, "data.dtype": "uint16", "data.range": (0.0, 5.0)}
    others |= {"backbone.image_mean": (0.1,), "backbone.image_std": (0.1,)}
    check(read(in_file=others, data__statistics=file), file)
    check(read(in_file=others | {"data.statistics": "gone.json"}, data__statistics=file), file)
    # And none turns it off.
    recipe = read(in_file=others | {"data.statistics": file}, data__statistics="")
    assert (recipe.data.channels, recipe.data.range) == (1, (0.0, 5.0))


@pytest.mark.parametrize(
    ("in_file", "overrides", "message"),
    [
        ({"data.channels": 4}, {}, "data.channels=4 contradicts"),
        ({"data.range": (0.0, 5.0)}, {}, "data.range=(0.0, 5.0) contradicts"),
        ({"backbone.image_std": (0.1, 0.2)}, {}, "backbone.image_std=(0.1, 0.2) contradicts"),
        ({}, {"data__channels": 3}, "data.channels=3 contradicts"),
        ({}, {"data__dtype": "uint8"}, "data.dtype='uint8' contradicts"),
    ],
)
@pytest.mark.parametrize("is_on_command_line", [False, True])
def test_a_contradiction_names_both(file, in_file, overrides, message, is_on_command_line):
    if is_on_command_line:
        overrides = overrides | {"data__statistics": file}
    else:
        in_file = in_file | {"data.statistics": file}
    if is_on_command_line and in_file:
        check(read(in_file=in_file, **overrides), file)
        return
    with pytest.raises(RecipeError, match=re.escape(message) + rf".*data.statistics={re.escape(file)}"):
        read(in_file=in_file, **overrides)
    # What agrees is no contradiction.
    check(read(in_file={"data.statistics": file, "data.channels": 2}, data__dtype="uint16"), file)


def test_a_run_resumes_without_its_file_and_refuses_a_changed_one(file, tmp_path):
    begun = read(data__statistics=file)
    saved = recipe_from_dict(json.loads(json.dumps(recipe_to_dict(begun))))
    moved = str(tmp_path / "moved.json")
    (tmp_path / "bands.json").rename(moved)
    assert read(saved=saved, data__statistics=file) == begun
    # The file may lie elsewhere, but one that never was there is a mistake.
    assert not differing_fields(saved, read(saved=saved, data__statistics=moved))
    for other in (None, recipe_from_dict({})):
        with pytest.raises(FileNotFoundError, match="there is no such file"):
            read(saved=other, data__statistics=file)
    with pytest.raises(FileNotFoundError, match="typo.json: there is no such file"):
        read(saved=saved, data__statistics=str(tmp_path / "typo.json"))
    write_statistics(tmp_path / "bands.json", Statistics(**vars(BANDS) | {"mean": (0.25, 0.75), "range": (0, 9)}))
    changed = differing_fields(saved, read(saved=saved, data__statistics=file))
    assert changed.keys() == {"data.range", "backbone.image_mean"}
