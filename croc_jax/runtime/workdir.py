"""The folder of a run: it belongs to one configuration, and to one running program at a time."""

import contextlib
import dataclasses
import errno
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from croc_jax.atomic_write import atomic_write
from croc_jax.data.sources.identity import ImageSet, describe_change
from croc_jax.paths import file_in_the_way
from croc_jax.runtime.distributed import gather_texts
from croc_jax.runtime.lock import LOCK_NAME, WorkdirError, explain, is_locked, lock_workdir, unlock_workdir
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
_SKIPPED = "skipped*.txt"
# What a run writes in its workdir.
_OWN = (
    CONFIG_NAME, IMAGES_NAME, STARTS_NAME, CHECKPOINTS_NAME, METRICS_NAME, PROMETHEUS_NAME, "tensorboard", "profile",
    "best.json", "inside", "wandb", "wandb.json",
    _SKIPPED, LOCK_NAME,
)  # fmt: skip
# Network file systems take a while to show what another host has written.
_SECONDS_TO_SHOW = 60.0


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
    try:
        plan = _plan(workdir, start) if jax.process_index() == 0 else None
    except OSError as error:
        raise explain(workdir, error) from error
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
    if file_in_the_way(workdir):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(workdir))
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
    found, steps_per_epoch = _compare_images(workdir, start, row)
    notes = [*(f"{name} was {was!r}, is {now!r}" for name, (was, now) in moved.items()), found or "the same images"]
    return Plan(False, step or 0, steps_per_epoch, ["; ".join(notes)] if moved or found else [])


def _compare_images(workdir: Path, start: Start, row: Mapping[str, Any] | None) -> tuple[str, int]:
    """Returns what to say of the images, if anything, and the steps an epoch of the run; `row` is its first one.

    Raises:
        WorkdirError: if they have changed, and that has not been accepted.
    """
    noted, steps_per_epoch = read_images(workdir), start.steps_per_epoch
    if noted:
        steps_per_epoch = noted.steps_per_epoch
    elif row and row.get("epoch"):
        steps_per_epoch = round(row["step"] / row["epoch"])
    known = noted.images if noted else ImageSet(**start.saved_images) if start.saved_images else None
    if known and known.digest == start.images.digest:
        return "", steps_per_epoch
    if known:
        change = describe_change(known, start.images)
    elif steps_per_epoch != start.steps_per_epoch:
        change = f"{steps_per_epoch} steps an epoch then, {start.steps_per_epoch} now"
    else:
        return "the images could not be compared: this workdir does not state what they were", steps_per_epoch
    if not start.accept_changed_images:
        raise WorkdirError(
            f"{workdir} holds a run with other images: {change}. Restore them, choose another --workdir, or go on with "
            "--accept_changed_images: the length of the run, its schedules and its count of epochs stay, and later "
            "batches are drawn from the images of now"
        )
    kept = f"length, its schedules and its count of epochs ({steps_per_epoch} steps each)"
    accepted = f"other images: {change}; as accepted, the run keeps its {kept}, and draws from those of now"
    return accepted, steps_per_epoch


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
            if is_locked(workdir) and latest_step(workdir) is None and not first_row(workdir):
                # A file that the message names has to stay.
                written = {path for name in _OWN for path in workdir.glob(name)} - before
                for path in (path for path in written if str(path) not in str(error)):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
                unlock_workdir(workdir)
                for folder in new:
                    folder.rmdir()
        raise


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
        raise explain(workdir, error) from error


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
        raise explain(workdir, error) from error


def read_recipe(path: Path) -> Recipe:
    """Returns the configuration in a config.json.

    Raises:
        WorkdirError: if it holds something else.
    """
    try:
        return recipe_from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        # It may quote whatever stands there.
        raise WorkdirError(f"{path} is no configuration of this version: {str(error)[:500]}") from error


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
