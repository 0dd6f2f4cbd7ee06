"""The folder of a run belongs to one recipe."""

import json
import time
from pathlib import Path
from typing import Any

from absl import logging

from croc_jax.training.config import Recipe, flatten, recipe_from_dict, recipe_to_dict
from croc_jax.training.durable import replace_file

CONFIG_NAME = "config.json"
CHECKPOINTS_NAME = "checkpoints"
# Network file systems take a while to show what another host has written.
_SECONDS_TO_SHOW = 60.0


class WorkdirError(ValueError):
    """A folder cannot be used for a run; the message says why and what to do."""


def claim_workdir(workdir: Path, recipe: Recipe) -> None:
    """Makes the folder if need be, and writes config.json unless another run is there.

    Settings of the group `runtime` change no number of a run: they may differ, and the new ones
    are written. A config.json that a crash of the host has emptied is written anew.

    Raises:
        WorkdirError: if the folder holds another recipe, with each differing field, or checkpoints
            of an unknown one, or cannot be written.
    """
    path = workdir / CONFIG_NAME
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.stat().st_size:
            logging.warning("%s is empty, as a crash leaves it: it gets the settings of this command", path)
        elif path.exists():
            _check_same(workdir, read_recipe(path), recipe)
        elif (workdir / CHECKPOINTS_NAME).exists():
            raise WorkdirError(f"{workdir} holds checkpoints but no {CONFIG_NAME}: choose another --workdir")
        replace_file(path, (json.dumps(recipe_to_dict(recipe), indent=2) + "\n").encode())
    except OSError as error:
        raise WorkdirError(f"cannot write to the workdir {workdir}: {error.strerror}") from error


def check_shared(workdir: Path, recipe: Recipe) -> None:
    """Looks at the config.json that process 0 has written.

    Raises:
        WorkdirError: if this process does not see it, or has another recipe, with each differing field.
    """
    path, deadline = workdir / CONFIG_NAME, time.monotonic() + _SECONDS_TO_SHOW
    while not path.exists():
        if time.monotonic() > deadline:
            raise WorkdirError(
                f"{path}, written by process 0, is not here: --workdir must be on a disk that all hosts share"
            )
        time.sleep(0.5)
    changes = differing_fields(read_recipe(path), recipe)
    if changes:
        listed = ", ".join(f"{name}={new!r} here and {old!r} there" for name, (old, new) in changes.items())
        raise WorkdirError(f"this process has another recipe than process 0: {listed}")


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
    before, after = flatten(recipe_to_dict(old)), flatten(recipe_to_dict(new))
    return {
        name: (before[name], after[name])
        for name in before
        if before[name] != after[name] and not name.startswith("runtime.")
    }


def _check_same(workdir: Path, old: Recipe, new: Recipe) -> None:
    changes = differing_fields(old, new)
    if changes:
        listed = "".join(f"\n  {name}: {old!r} there, {new!r} now" for name, (old, new) in changes.items())
        raise WorkdirError(f"{workdir} holds a run of another configuration; choose another --workdir, or undo{listed}")
