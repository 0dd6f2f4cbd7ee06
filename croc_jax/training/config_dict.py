"""A recipe as a ConfigDict: every field at its default, open to overrides on the command line."""

import dataclasses
import types
import typing
from typing import Any

from ml_collections import ConfigDict, config_dict

from croc_jax.training.config import Recipe


def recipe_config(recipe: Recipe | None = None) -> ConfigDict:
    """Returns a recipe, by default the default one, for a config file to change.

    Optional fields without a value are typed placeholders: they can be set in the file and on
    the command line. Unknown fields raise in both.
    """
    config = _open(Recipe() if recipe is None else recipe)
    config.lock()
    return config


def _open(settings: Any) -> ConfigDict:
    hints = typing.get_type_hints(type(settings))
    fields = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            fields[field.name] = _open(value)
        elif value is None:
            fields[field.name] = config_dict.placeholder(_without_none(hints[field.name]))
        else:
            fields[field.name] = value
    return ConfigDict(fields)


def _without_none(hint: Any) -> type:
    kind = next(kind for kind in typing.get_args(hint) if kind is not types.NoneType)
    return typing.get_origin(kind) or kind
