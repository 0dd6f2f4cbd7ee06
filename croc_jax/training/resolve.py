"""From a config file to its recipe: a file of statistics and the preset "auto" are replaced by the values they give."""

import copy
import functools
from collections.abc import Collection, Mapping
from typing import Any

from croc_jax.data.sources import open_data
from croc_jax.data.sources.base import tell
from croc_jax.data.statistics import read_statistics
from croc_jax.training.config import Recipe, RecipeError, flatten, recipe_from_dict, recipe_to_dict
from croc_jax.training.presets import AUTO, PRESETS, nearest_preset

_STATISTICS = "data.statistics"
# Settings by the field of `Statistics` that replaces them.
_MEASURED = {
    "data.channels": "channels", "data.dtype": "dtype", "data.range": "range",
    "backbone.image_mean": "mean", "backbone.image_std": "std",
}  # fmt: skip


def recipe_from_config(
    settings: Mapping[str, Any], *, given: Collection[str] = (), saved: Recipe | None = None
) -> Recipe:
    """Builds the recipe of a config file, with the values of the file of statistics and of the preset that it asks for.

    What the command line names counts more than the config file: a file of statistics given there replaces values of
    the config file. A preset replaces defaults alone.

    Args:
        settings: nested mappings, such as a ConfigDict as dict.
        given: fields that the command line sets, such as "data.range".
        saved: the recipe of the run that is resumed: its values are taken if the file of statistics that they came from
            is gone, and its preset in place of "auto".

    Raises:
        RecipeError: as `recipe_from_dict`; for a value that contradicts the file; and for a preset given on the command
            line, where it would replace some settings of a config file and leave others.
        FileNotFoundError: if there is no such file, and nothing is known of it.
        ValueError: if it holds something else; or if the preset is "auto", and there are no images, or too few.
    """
    if "preset" in given:
        raise RecipeError(
            f"preset={settings['preset']!r}: give --config=configs/presets.py:{settings['preset']} instead"
        )
    path = flatten(settings).get(_STATISTICS)
    if path and isinstance(path, str):
        settings = _replace(settings, _measured(settings, path, given, saved))
    if settings.get("preset") == AUTO:
        settings = _replace(settings, _preset(settings, given, saved))
    return recipe_from_dict(settings)


def _measured(
    settings: Mapping[str, Any], path: str, given: Collection[str], saved: Recipe | None
) -> Mapping[str, Any]:
    """Returns the values of a file of statistics by field; RecipeError for one that another choice contradicts."""
    recipe, values = flatten(settings), _find(path, saved)
    chosen = set(given) if _STATISTICS in given else _chosen(recipe, given)
    for name, value in values.items():
        if name in chosen and _plain(recipe[name]) != _plain(value):
            raise RecipeError(
                f"{name}={recipe[name]!r} contradicts {_STATISTICS}={path}, which states {value!r}: leave out one"
            )
    return values


def _preset(settings: Mapping[str, Any], given: Collection[str], saved: Recipe | None) -> Mapping[str, Any]:
    """Returns the settings of the preset of a resumed run, or of the one nearest to the images, and its name."""
    name = saved.preset if saved else ""
    if not name:
        name = nearest_preset(len(open_data(recipe_from_dict({**settings, "preset": ""}).data)))
    chosen = _chosen(flatten(settings), given)
    return {"preset": name} | {field: one for field, one in PRESETS[name].values.items() if field not in chosen}


def _chosen(recipe: Mapping[str, Any], given: Collection[str]) -> set[str]:
    """Returns the fields that the command line or the config file set; in a config file, a default is no choice."""
    default = flatten(recipe_to_dict(Recipe()))
    return {name for name in recipe if name in given or _plain(recipe[name]) != _plain(default.get(name))}


def _replace(settings: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns nested settings with other values of some fields, such as "data.views.scale"."""
    changed = copy.deepcopy(dict(settings))
    for name, value in values.items():
        *groups, field = name.split(".")
        functools.reduce(lambda group, part: group.setdefault(part, {}), groups, changed)[field] = value
    return changed


def _find(path: str, saved: Recipe | None) -> dict[str, Any]:
    try:
        statistics = read_statistics(path, name=_STATISTICS)
    except FileNotFoundError:
        if saved is None or saved.data.statistics != path:
            raise
        tell(f"{_STATISTICS}={path}: there is no such file; the run that is resumed has its values in config.json")
        known = flatten(recipe_to_dict(saved))
        return {name: known[name] for name in _MEASURED}
    return {name: getattr(statistics, field) for name, field in _MEASURED.items()}


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else value
