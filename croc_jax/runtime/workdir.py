"""The folder of a run: it belongs to one configuration, and to one running program at a time."""

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import jax
from absl import logging

from croc_jax import machine_errors
from croc_jax.atomic_write import atomic_write
from croc_jax.data.sources.identity import ImageSet, describe_change
from croc_jax.runtime.distributed import gather_texts
from croc_jax.runtime.metrics_writer import FILE_NAME as METRICS_NAME
from croc_jax.runtime.metrics_writer import PROMETHEUS_NAME, parse_row
from croc_jax.runtime.starts import (
    IMAGES_NAME,
    STARTS_NAME,
    RunImages,
    append_start,
    environment,
    read_images,
    write_images,
)
from croc_jax.training.config import PATHS, Recipe, decides_numbers, flatten, recipe_from_dict, recipe_to_dict

CONFIG_NAME = "config.json"
CHECKPOINTS_NAME = "checkpoints"
LOCK_NAME = "lock"
_SKIPPED = "skipped*.txt"
# What a run writes in its workdir.
_OWN = (
    CONFIG_NAME, IMAGES_NAME, STARTS_NAME, CHECKPOINTS_NAME, METRICS_NAME, PROMETHEUS_NAME, "tensorboard", "profile",
    _SKIPPED, LOCK_NAME,
)  # fmt: skip
# A preempted run needs time to save while its successor starts; a file system may notice a lost host late.
_SECONDS_TO_WAIT, _SECONDS_TO_LOSE_HOST = 30.0, 120.0
# Network file systems take a while to show what another host has written.
_SECONDS_TO_SHOW = 60.0
_NO_LOCKS = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS, errno.EINVAL)

# Open until this process ends, which releases the lock however it ends.
_held: dict[Path, IO[str]] = {}


class WorkdirError(ValueError):
    """A folder cannot be used for a run; the message says why and what to do."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Start:
    """What a start brings to a workdir.

    Attributes:
        recipe: settings of the run.
        images: what identifies the images that this process has found.
        steps_per_epoch: updates of a pass over them.
        accept_changed_images: whether a run may go on with other images than it began with.
        saved_images: number and digest of the images in the latest checkpoint, if it states them.
    """

    recipe: Recipe
    images: ImageSet
    steps_per_epoch: int
    accept_changed_images: bool = False
    saved_images: Mapping[str, Any] | None = None


class Plan(NamedTuple):
    """How a run starts.

    Attributes:
        is_new: whether nothing has been logged or saved in the workdir.
        step: step of the latest checkpoint; 0 without one.
        steps_per_epoch: updates an epoch, which a change of the images does not change.
        notes: lines for the user.
    """

    is_new: bool
    step: int
    steps_per_epoch: int
    notes: Sequence[str]


def plan_start(workdir: Path, start: Start) -> Plan:
    """Checks, without a change on the disk, whether a run can start or go on in a workdir.

    Raises:
        WorkdirError: if the folder holds a run of another configuration or with other images, or the processes of
            this run have different configurations or images.
        OSError: if the file system does not answer.
    """
    _check_agreement(start)
    plan = _plan(workdir, start) if jax.process_index() == 0 else None
    return Plan(*json.loads(gather_texts(json.dumps(plan))[0]))


def claim_workdir(workdir: Path, start: Start) -> None:
    """Locks and initializes the workdir in process 0; the other processes check that they see it, too.

    Raises:
        WorkdirError: if another program is using the folder, the processes do not share it, and as `plan_start`.
        OSError: if the file system does not answer.
    """
    if jax.process_index() == 0:
        lock_workdir(workdir)
        _write_start(workdir, start)
    gather_texts("initialized")
    deadline = time.monotonic() + _SECONDS_TO_SHOW
    while not (workdir / CONFIG_NAME).exists():
        if time.monotonic() > deadline:
            raise WorkdirError(f"{workdir} lacks what process 0 has written: --workdir must be on a shared disk")
        time.sleep(0.5)


def _check_agreement(start: Start) -> None:
    """Raises WorkdirError unless all processes have the same settings but paths, and the same images."""
    settings = {name: value for name, value in flatten(recipe_to_dict(start.recipe)).items() if name not in PATHS}
    texts = gather_texts(json.dumps({"settings": settings, "images": start.images.brief}))
    first, *others = map(json.loads, texts)
    for index, other in enumerate(others, 1):
        if changes := _compare(first["settings"], other["settings"]):
            listed = ", ".join(f"{name}={new!r} there, {old!r} in process 0" for name, (old, new) in changes.items())
            raise WorkdirError(f"process {index} has another configuration: {listed}; give all the same flags")
        if other["images"] != first["images"]:
            found, expected = ("{count} images (digest {digest})".format(**one["images"]) for one in (other, first))
            raise WorkdirError(
                f"process {index} finds {found}, process 0 finds {expected}: names and sizes must be the same for all; "
                "complete the copy of one of them"
            )


def _plan(workdir: Path, start: Start) -> Plan:
    path, step = workdir / CONFIG_NAME, latest_step(workdir)
    # Whatever it is, a file that is no configuration of a run is not overwritten.
    old = read_recipe(path) if path.exists() else None
    row = first_row(workdir)
    if step is None and row is None:
        return Plan(True, 0, start.steps_per_epoch, ())
    if old is None:
        raise WorkdirError(f"{workdir} holds a run but no {CONFIG_NAME}: choose another --workdir")
    if changes := differing_fields(old, start.recipe):
        listed = "".join(f"\n  {name}: {was!r} there, {now!r} now" for name, (was, now) in changes.items())
        raise WorkdirError(f"{workdir} holds a run of another configuration; choose another --workdir, or undo{listed}")
    moved = {name: values for name, values in _changes(old, start.recipe).items() if name in PATHS}
    notes = [f"{name}: {was!r} so far, {now!r} now" for name, (was, now) in moved.items()]
    noted = read_images(workdir)
    known = noted.images if noted else ImageSet(**start.saved_images) if start.saved_images else None
    change, steps_per_epoch = "", noted.steps_per_epoch if noted else _logged_steps_per_epoch(row, start)
    if known:
        change = describe_change(known, start.images) if known.digest != start.images.digest else ""
    elif steps_per_epoch != start.steps_per_epoch:
        change = f"{steps_per_epoch} steps an epoch then, {start.steps_per_epoch} now"
    else:
        notes.append("the images could not be compared with those so far: this workdir does not state what they were")
    if change:
        if not start.accept_changed_images:
            raise WorkdirError(
                f"{workdir} holds a run with other images: {change}. Restore them, choose another --workdir, or go on "
                "with --accept_changed_images: the length of the run, its schedules and its count of epochs stay, and "
                "later batches are drawn from the images of now"
            )
        notes.append(
            f"other images: {change}. As accepted, the run keeps its length, its schedules and its count of epochs "
            f"({steps_per_epoch} steps each), and draws from the images of now"
        )
    elif moved and known:
        notes.append("the images are the same")
    return Plan(False, step or 0, steps_per_epoch, notes)


def latest_step(workdir: Path) -> int | None:
    """Returns the step of the latest finished checkpoint in a workdir, or None."""
    folder = workdir / CHECKPOINTS_NAME
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return max((int(name) for name in names if name.isdigit()), default=None)


def first_row(workdir: Path) -> dict[str, Any] | None:
    """Returns the first row of metrics.jsonl, or None if no step has been logged."""
    file = workdir / METRICS_NAME
    if not file.is_file():
        return None
    with file.open("rb") as lines:
        return next((row for line in lines if (row := parse_row(line))), None)


def _logged_steps_per_epoch(row: Mapping[str, Any] | None, start: Start) -> int:
    return round(row["step"] / row["epoch"]) if row and row.get("epoch") else start.steps_per_epoch


@contextlib.contextmanager
def leaving_nothing(workdir: Path) -> Iterator[None]:
    """Removes what a start has written, in the workdir and of the folders above it, if it fails without progress.

    Progress is a logged step or a saved state: until then, nothing of a run is lost.
    """
    before = {path for name in _OWN for path in workdir.glob(name)}
    new = [folder for folder in (workdir, *workdir.parents) if not folder.exists()]
    try:
        yield
    except BaseException as error:
        # Without the lock, the files are another program's.
        with contextlib.suppress(OSError):
            if workdir.absolute() / LOCK_NAME in _held and latest_step(workdir) is None and not first_row(workdir):
                # A file that the message names has to stay.
                written = {path for name in _OWN for path in workdir.glob(name)} - before
                for path in (path for path in written if str(path) not in str(error)):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
                _held.pop(workdir.absolute() / LOCK_NAME).close()
                for folder in new:
                    folder.rmdir()
        raise


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
        raise _explain(workdir, error) from error
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not path.exists() or not os.path.samestat(os.fstat(file.fileno()), path.stat()):
                # Its holder has left nothing: neither this file.
                file.close()
                return lock_workdir(workdir)
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


def _write_start(workdir: Path, start: Start) -> None:
    """Notes what a run starts with, after the same checks as `plan_start`: another program may have come first.

    A run that has neither logged a step nor saved a state forbids nothing: another one takes its place.
    """
    plan, path = _plan(workdir, start), workdir / CONFIG_NAME
    notes = environment() | {"images": start.images.brief}
    try:
        if plan.is_new:
            for file in workdir.glob(_SKIPPED):
                file.unlink()
        else:
            notes["changed"] = _changes(read_recipe(path), start.recipe)
        init_workdir(workdir, start.recipe)
        write_images(workdir, RunImages(start.images, plan.steps_per_epoch))
        append_start(workdir, plan.step, notes)
    except OSError as error:
        raise _explain(workdir, error) from error


def init_workdir(workdir: Path, recipe: Recipe) -> None:
    """Creates the folder if need be, and writes config.json.

    Raises:
        WorkdirError: if the folder cannot be written.
        OSError: if the file system does not answer.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        atomic_write(workdir / CONFIG_NAME, (json.dumps(recipe_to_dict(recipe), indent=2) + "\n").encode())
    except OSError as error:
        raise _explain(workdir, error) from error


def _explain(workdir: Path, error: OSError) -> Exception:
    """Returns what to raise for an error of the disk: itself, if another start may find the disk well."""
    if error.errno in machine_errors.TRANSIENT:
        return error
    return WorkdirError(f"cannot write to the workdir {workdir}: {error.strerror}")


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
    changes = {name: values for name, values in _changes(old, new).items() if decides_numbers(name)}
    # Where its weights came from does not matter to a run that has begun; whether they came from anywhere does.
    if bool(old.init_from.source) != bool(new.init_from.source):
        changes["init_from.source"] = old.init_from.source, new.init_from.source
    return changes


def _changes(old: Recipe, new: Recipe) -> dict[str, tuple[object, object]]:
    return _compare(recipe_to_dict(old), recipe_to_dict(new))


def _compare(old: Mapping[str, object], new: Mapping[str, object]) -> dict[str, tuple[object, object]]:
    before, after = flatten(old), flatten(new)
    pairs = {name: (before.get(name), after.get(name)) for name in before | after}
    return {name: (was, now) for name, (was, now) in pairs.items() if was != now}
