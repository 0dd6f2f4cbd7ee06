"""A recipe as a ConfigDict, and what the command line can change in it."""

import dataclasses

import pytest
from absl import flags
from ml_collections import config_flags

from croc_jax.models import BackboneConfig
from croc_jax.training.config import Recipe, RecipeError, recipe_from_dict
from croc_jax.training.config_dict import recipe_config


def parse(*arguments):
    values = flags.FlagValues()
    argv = ["program", *arguments]
    config_flags.DEFINE_config_dict("config", recipe_config(), flag_values=values, sys_argv=argv)
    values(argv)
    return recipe_from_dict(values.config.to_dict())


def test_it_holds_the_default_recipe():
    assert recipe_from_dict(recipe_config().to_dict()) == Recipe()


def test_losses_of_an_earlier_version_are_passed_over_where_they_were_off():
    settings = recipe_config().to_dict()
    settings["objective"] |= {"neighbors": {"weight": 0.0, "queue": 65536}, "gram": {"weight": 0.0}}
    assert recipe_from_dict(settings) == Recipe()
    settings["objective"]["gram"]["weight"] = 1.0
    with pytest.raises(RecipeError, match=r"objective.gram.weight=1.0: this version has no such loss"):
        recipe_from_dict(settings)


def test_it_holds_any_recipe():
    recipe = Recipe(seed=5, backbone=BackboneConfig(width=96, num_heads=3))
    assert recipe_from_dict(recipe_config(recipe).to_dict()) == recipe


def test_unknown_fields_raise_in_a_config_file():
    config = recipe_config()
    with pytest.raises(AttributeError, match="epochs"):
        config.schedule.epoch = 3


@pytest.mark.parametrize(
    ("arguments", "folders"),
    [
        (["--config.data.folders=a/b-c/train2017"], ("a/b-c/train2017",)),
        (["--config.data.folders=/data/photos"], ("/data/photos",)),
        (["--config.data.folders=a", "--config.data.folders=b/c"], ("a", "b/c")),
        (["--config.data.folders=('a', 'b c')"], ("a", "b c")),
        (["--config.data.folders='my photos'"], ("my photos",)),
    ],
)
def test_folders_can_be_given_in_several_ways(arguments, folders):
    assert parse(*arguments).data.folders == folders


def test_every_kind_of_field_can_be_overridden():
    recipe = parse(
        "--config.seed=7",
        "--config.backbone.width=64",
        "--config.backbone.remat",
        "--config.optimizer.base_lr=1",
        "--config.objective.tokens=keys",
        "--config.data.views.scale=(0.5, 1)",
    )
    assert recipe.seed == 7 and recipe.backbone.width == 64 and recipe.backbone.remat is True
    assert recipe.optimizer.base_lr == 1.0 and recipe.objective.tokens == "keys"
    assert recipe.data.views.scale == (0.5, 1.0)
    untouched = dataclasses.replace(recipe.backbone, width=None, remat=False)
    assert untouched == BackboneConfig()


@pytest.mark.parametrize("argument", ["--config.backbone.width=wide", "--config.seed=1.5"])
def test_values_of_the_wrong_type_are_refused(argument):
    with pytest.raises(flags.IllegalFlagValueError, match=argument.split("=")[0]):
        parse(argument)
