"""The folder of a run belongs to one recipe."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import logging

from croc_jax.atomic_write import atomic_write
from croc_jax.runtime.processes import gather_texts
from croc_jax.training.config import Recipe, flatten, recipe_from_dict, recipe_to_dict

CONFIG_NAME = "config.json"
CHECKPOINTS_NAME = "checkpoints"
# Network file systems take a while to show what another host has written.
_SECONDS_TO_SHOW = 60.0


class WorkdirError(ValueError):
    """A folder cannot be used for a run; the message says why and what to do."""


def init_workdir(workdir: Path, recipe: Recipe, *, find_saved: Callable[[], Recipe | None] = lambda: None) -> None:
    """Makes the folder if need be, and writes config.json unless another run is there.

    Settings of the group `runtime` change no number of a run: they may differ, and the new ones
    are written. A config.json that a crash of the host has emptied is written anew.

    Args:
        workdir: of the run.
        recipe: of the run.
        find_saved: returns the recipe of the newest checkpoint, if it can be read; asked if config.json is empty.

    Raises:
        WorkdirError: if the folder holds another recipe, with each differing field, or checkpoints
            of an unknown one, or cannot be written.
    """
    path = workdir / CONFIG_NAME
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.stat().st_size:
            _check_same(workdir, find_saved() or recipe, recipe)
            logging.warning("%s is empty, as a crash leaves it: it gets the settings of this command", path)
        elif path.exists():
            _check_same(workdir, read_recipe(path), recipe)
        elif (workdir / CHECKPOINTS_NAME).exists():
            raise WorkdirError(f"{workdir} holds checkpoints but no {CONFIG_NAME}: choose another --workdir")
        atomic_write(path, (json.dumps(recipe_to_dict(recipe), indent=2) + "\n").encode())
    except OSError as error:
        raise WorkdirError(f"cannot write to the workdir {workdir}: {error.strerror}") from error


def check_agreed(recipe: Recipe) -> None:
    """Compares the recipes of all processes, which all have to come by here; all raise alike.

    Settings of the group `runtime` count, too: they decide what the processes do together.

    Raises:
        WorkdirError: if one has another recipe than process 0, with each differing field.
    """
    texts = gather_texts(json.dumps(recipe_to_dict(recipe), sort_keys=True))
    for index, text in enumerate(texts):
        if changes := _compare(json.loads(texts[0]), json.loads(text)):
            listed = ", ".join(f"{name}={new!r} there and {old!r} in process 0" for name, (old, new) in changes.items())
            raise WorkdirError(f"process {index} has another recipe than process 0: {listed}; give all the same flags")


def check_shared(workdir: Path) -> None:
    """Looks for the config.json that process 0 has written.

    Raises:
        WorkdirError: if this process does not see it.
    """
    path, deadline = workdir / CONFIG_NAME, time.monotonic() + _SECONDS_TO_SHOW
    while not path.exists():
        if time.monotonic() > deadline:
            raise WorkdirError(
                f"{path}, written by process 0, is not here: --workdir must be on a disk that all hosts share"
            )
        time.sleep(0.5)


def read_recipe(path: Path) -> Recipe:
    """Returns the recipe of a config.json.

    Raises:
        WorkdirError: if it holds something else.
    """
    try:
        return recipe_from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, AttributeError) as error:
        raise WorkdirError(f"{path} is no recipe of this version: {error}") from error


def differing_fields(old: Recipe, new: Recipe) -> dict[str, tuple[Any, Any]]:
    """Returns {"optimizer.base_lr": (old value, new value), ...} for settings that decide a run's numbers."""
    changes = _compare(recipe_to_dict(old), recipe_to_dict(new))
    return {name: values for name, values in changes.items() if not name.startswith("runtime.")}


def _compare(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    before, after = flatten(old), flatten(new)
    names = [*before, *(name for name in after if name not in before)]
    pairs = {name: (before.get(name), after.get(name)) for name in names}
    return {name: (was, now) for name, (was, now) in pairs.items() if was != now}


def _check_same(workdir: Path, old: Recipe, new: Recipe) -> None:
    changes = differing_fields(old, new)
    if changes:
        listed = "".join(f"\n  {name}: {old!r} there, {new!r} now" for name, (old, new) in changes.items())
        raise WorkdirError(f"{workdir} holds a run of another configuration; choose another --workdir, or undo{listed}")
