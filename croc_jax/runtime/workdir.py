"""The folder of a run: it belongs to one configuration, and to one running program at a time."""

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import jax
from absl import logging

from croc_jax import machine_errors
from croc_jax.atomic_write import atomic_write
from croc_jax.runtime.distributed import gather_texts
from croc_jax.training.config import Recipe, flatten, recipe_from_dict, recipe_to_dict

CONFIG_NAME = "config.json"
CHECKPOINTS_NAME = "checkpoints"
LOCK_NAME = "lock"
# A preempted run needs time to save while its successor starts; a file system may notice a lost host late.
_SECONDS_TO_WAIT, _SECONDS_TO_LOSE_HOST = 30.0, 120.0
# Network file systems take a while to show what another host has written.
_SECONDS_TO_SHOW = 60.0
_NO_LOCKS = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS, errno.EINVAL)

# Open until this process ends, which releases the lock however it ends.
_held: dict[Path, IO[str]] = {}


class WorkdirError(ValueError):
    """A folder cannot be used for a run; the message says why and what to do."""


def claim_workdir(workdir: Path, recipe: Recipe, *, num_images: int | None = None) -> None:
    """Locks and initializes the workdir in process 0; the other processes check that they see it, too.

    Args:
        workdir: folder of the run.
        recipe: settings of the run.
        num_images: images that this process has found, which must be as many in all processes.

    Raises:
        WorkdirError: if another program is using the folder, it holds a run of another configuration, the
            processes of this run have different configurations or images, or do not share the folder.
        OSError: if the file system does not answer.
    """
    settings = recipe_to_dict(recipe) | {"number of images": num_images}
    texts = gather_texts(json.dumps(settings, sort_keys=True))
    for index, text in enumerate(texts):
        if changes := _compare(json.loads(texts[0]), json.loads(text)):
            listed = ", ".join(f"{name}={new!r} there, {old!r} in process 0" for name, (old, new) in changes.items())
            raise WorkdirError(f"process {index} has another configuration: {listed}; give all the same flags")
    if jax.process_index() == 0:
        lock_workdir(workdir)
        init_workdir(workdir, recipe)
    gather_texts("initialized")
    deadline = time.monotonic() + _SECONDS_TO_SHOW
    while not (workdir / CONFIG_NAME).exists():
        if time.monotonic() > deadline:
            raise WorkdirError(f"{workdir} lacks what process 0 has written: --workdir must be on a shared disk")
        time.sleep(0.5)


def lock_workdir(workdir: Path) -> None:
    """Locks a workdir, which is created if need be, until this process ends; waits a while for another program.

    Raises:
        WorkdirError: if another program keeps the lock, or the folder cannot be written.
    """
    path, begin, is_waiting = workdir.absolute() / LOCK_NAME, time.monotonic(), False
    if path in _held:
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        if error.errno in machine_errors.TRANSIENT:
            raise
        raise WorkdirError(f"cannot write to the workdir {workdir}: {error.strerror}") from error
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            is_elsewhere = not holder.endswith(f" on {socket.gethostname()}")
            if time.monotonic() - begin > (_SECONDS_TO_LOSE_HOST if is_elsewhere else _SECONDS_TO_WAIT):
                file.close()
                lost = f", or, if that host is lost, remove {path}" if is_elsewhere else ""
                raise WorkdirError(
                    f"{workdir} is in use by {holder}: wait for it, or choose another --workdir{lost}"
                ) from None
            if not is_waiting:
                is_waiting = True
                logging.warning("%s is in use by %s; waiting for it to end", workdir, holder)
            time.sleep(0.2)
        except OSError as error:
            if error.errno in machine_errors.TRANSIENT:
                raise
            if error.errno not in _NO_LOCKS:
                raise WorkdirError(f"cannot lock {path}: {error.strerror}") from error
            logging.warning("%s: no file locks (%s); do not start a second program there", workdir, error.strerror)
            break
    with contextlib.suppress(OSError):
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
    _held[path] = file


def init_workdir(workdir: Path, recipe: Recipe) -> None:
    """Creates the folder if need be, and writes config.json unless a run of another configuration is there.

    Settings of the group `runtime` do not change the numbers of a run: they may differ, and the new ones are written.

    Raises:
        WorkdirError: if the folder holds another configuration (listing each differing field), or checkpoints of an
            unknown one, or cannot be written.
    """
    path = workdir / CONFIG_NAME
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if path.exists():
            if changes := differing_fields(read_recipe(path), recipe):
                listed = "".join(f"\n  {name}: {old!r} there, {new!r} now" for name, (old, new) in changes.items())
                raise WorkdirError(
                    f"{workdir} holds a run of another configuration; choose another --workdir, or undo{listed}"
                )
        elif (workdir / CHECKPOINTS_NAME).exists():
            raise WorkdirError(f"{workdir} holds checkpoints but no {CONFIG_NAME}: choose another --workdir")
        atomic_write(path, (json.dumps(recipe_to_dict(recipe), indent=2) + "\n").encode())
    except OSError as error:
        if error.errno in machine_errors.TRANSIENT:
            raise
        raise WorkdirError(f"cannot write to the workdir {workdir}: {error.strerror}") from error


def read_recipe(path: Path) -> Recipe:
    """Returns the configuration in a config.json.

    Raises:
        WorkdirError: if it holds something else.
    """
    try:
        return recipe_from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, AttributeError) as error:
        raise WorkdirError(f"{path} is no configuration of this version: {error}") from error


def differing_fields(old: Recipe, new: Recipe) -> dict[str, tuple[object, object]]:
    """Returns {"optimizer.base_lr": (old value, new value), ...} for settings that decide a run's numbers."""
    changes = _compare(recipe_to_dict(old), recipe_to_dict(new))
    return {name: values for name, values in changes.items() if not name.startswith("runtime.")}


def _compare(old: Mapping[str, object], new: Mapping[str, object]) -> dict[str, tuple[object, object]]:
    before, after = flatten(old), flatten(new)
    pairs = {name: (before.get(name), after.get(name)) for name in before | after}
    return {name: (was, now) for name, (was, now) in pairs.items() if was != now}
