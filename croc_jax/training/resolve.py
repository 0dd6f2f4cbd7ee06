"""From a config file to its recipe: the file of statistics that it names is replaced by the values in it."""

from collections.abc import Collection, Mapping
from typing import Any

from croc_jax.data.sources.base import tell
from croc_jax.data.statistics import read_statistics
from croc_jax.training.config import Recipe, RecipeError, flatten, recipe_from_dict, recipe_to_dict

_STATISTICS = "data.statistics"
# Settings by the field of `Statistics` that replaces them.
_MEASURED = {
    "data.channels": "channels", "data.dtype": "dtype", "data.range": "range",
    "backbone.image_mean": "mean", "backbone.image_std": "std",
}  # fmt: skip


def recipe_from_config(
    settings: Mapping[str, Any], *, given: Collection[str] = (), saved: Recipe | None = None
) -> Recipe:
    """Builds the recipe of a config file, with the values of its file of statistics if it names one.

    What the command line names counts more than the config file: a file of statistics given there replaces values of
    the config file.

    Args:
        settings: nested mappings, such as a ConfigDict as dict.
        given: fields that the command line sets, such as "data.range".
        saved: the recipe of the run that is resumed; its values are taken if the file that it came from is gone.

    Raises:
        RecipeError: as `recipe_from_dict`; and for a value that contradicts the file.
        FileNotFoundError: if there is no such file, and nothing is known of it.
        ValueError: if it holds something else.
    """
    recipe = flatten(settings)
    path = recipe.get(_STATISTICS)
    if not path or not isinstance(path, str):
        return recipe_from_dict(settings)
    values = _find(path, saved)
    default = flatten(recipe_to_dict(Recipe()))
    for name, value in values.items():
        # In a config file, a default is no choice.
        is_chosen = name in given or (_STATISTICS not in given and recipe.get(name, default[name]) != default[name])
        if is_chosen and _plain(recipe[name]) != _plain(value):
            raise RecipeError(
                f"{name}={recipe[name]!r} contradicts {_STATISTICS}={path}, which states {value!r}: leave out one"
            )
    groups = {group: dict(settings.get(group, {})) for group in ("data", "backbone")}
    for name, value in values.items():
        group, field = name.split(".")
        groups[group][field] = value
    return recipe_from_dict({**settings, **groups})


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
