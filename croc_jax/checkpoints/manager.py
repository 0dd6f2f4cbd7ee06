"""States on disk: written while training goes on, and read back whole or not at all."""

import contextlib
import errno
import functools
import gc
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.sharding import SingleDeviceSharding

from croc_jax.checkpoints.aftermath import mute_orbax
from croc_jax.checkpoints.folder import find_torn, list_checkpoints, probe, remove_torn, remove_torn_for_good
from croc_jax.checkpoints.manifest import DamagedError, describe
from croc_jax.checkpoints.restore import (
    CheckpointError,
    find_checkpoints,
    read_arrays,
    read_metadata,
    read_newest,
    silenced,
)
from croc_jax.runtime.distributed import from_first, gather_texts
from croc_jax.runtime.workdir import CHECKPOINTS_NAME
from croc_jax.training.config import Recipe, RecipeError, recipe_from_dict
from croc_jax.training.forward import init_networks, init_params

Params = Any

_KEEP_LATEST = 2
_DAMAGED_NAME = "damaged-checkpoints"
# What a checkpoint takes beside the arrays.
_SMALL_FILES = 2**20
# Of a save: a network file system may be slow, and training waits only for the one before.
_SECONDS_TO_SAVE = 3600


class SaveError(OSError):
    """The disk refuses a state."""

    def __init__(self, reason: str) -> None:
        """Takes a full disk for the reason."""
        super().__init__(errno.ENOSPC, reason)

    def __str__(self) -> str:
        """Returns the reason alone."""
        return self.strerror or ""


class Checkpointer:
    """The checkpoints of one run, in WORKDIR/checkpoints/<step>/.

    The two latest are kept, and those at every multiple of `keep_every_steps`. If several processes
    form the run, all make the same calls: each writes and reads its part.
    """

    def __init__(
        self,
        workdir: Path,
        recipe: Recipe,
        *,
        keep_every_steps: int | None = None,
        save_every_minutes: float | None = None,
    ) -> None:
        """Opens the folder, names what saves that were cut short have left, and removes it.

        Args:
            workdir: of the run.
            recipe: of the run; stored in each checkpoint.
            keep_every_steps: steps between two checkpoints that are kept for good.
            save_every_minutes: minutes between two saves.

        Raises:
            CheckpointError: if the folder cannot be written, in any process of the run.
        """
        self._folder = workdir.absolute() / CHECKPOINTS_NAME
        self._recipe, self._keep_every, self._minutes = recipe, keep_every_steps, save_every_minutes
        self._saved_at = time.monotonic()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=_KEEP_LATEST,
            keep_period=keep_every_steps,
            async_options=ocp.AsyncOptions(timeout_secs=_SECONDS_TO_SAVE),
        )
        self._options = options
        if reason := _agree(probe(self._folder)):
            raise CheckpointError(f"no checkpoint could be saved: {reason}")
        if jax.process_index() == 0:
            for step in find_torn(self._folder):
                logging.warning("skipping step %s: its save was cut short", step)
        mute_orbax()
        self._manager = self._open()

    def latest_step(self) -> int | None:
        """Returns the step of the latest checkpoint, if any, be it written or under way."""
        return self._manager.latest_step()

    def latest_path(self) -> Path | None:
        """Returns the folder of the latest checkpoint on the disk, if any, whatever has failed before.

        A process that is alone waits for what is being written.
        """
        if jax.process_count() == 1:
            self._settle()
        try:
            return next(iter(list_checkpoints(self._folder)), None)
        except OSError:
            return None

    def should_save(self, step: int) -> bool:
        """Returns whether a state is due: the same in all processes, which all ask at every step."""
        if self._keep_every and step % self._keep_every == 0:
            return True
        if self._minutes is None:
            return False
        return from_first(time.monotonic() - self._saved_at >= 60 * self._minutes)

    def save(self, step: int, state: Any, *, wait: bool = False) -> None:
        """Takes a copy of a state at once and writes it in the background.

        If the save before has failed, in a process that is alone, a warning says so, and this one goes ahead.

        Args:
            step: of the state; nothing is written if it has been saved already.
            state: a tree of arrays; may be donated afterwards.
            wait: return only when everything is written.

        Raises:
            SaveError: if the folder cannot be written or the disk is too full for it, or, in a process that is
                alone, if the disk refuses this state.
        """
        self._saved_at = time.monotonic()
        if self._settle() == step:
            # What still writes for it would mix with what is written now.
            remove_torn_for_good(self._folder)
        if step != self.latest_step():
            if reason := _agree(probe(self._folder) or self._find_lack(state)):
                raise SaveError(f"step {step} is not saved: {reason}")
            metadata = describe(self._recipe, step, state)
            items = {"state": ocp.args.StandardSave(state), "metadata": ocp.args.JsonSave(metadata)}
            if reason := self._try(lambda: self._manager.save(step, args=ocp.args.Composite(**items), force=True)):
                raise SaveError(f"the state of step {step} could not be saved: {reason}")
        if wait and (reason := self._try(self._manager.wait_until_finished)):
            raise SaveError(f"the state of step {step} could not be saved: {reason}")

    def _settle(self) -> int | None:
        """Waits for the save before; one that has failed is named, hinders no other, and its step is returned."""
        step = self.latest_step()
        reason = self._try(self._manager.wait_until_finished)
        if not reason:
            return None
        logging.warning("the state of step %d could not be saved: %s", step, reason)
        return step

    def _try(self, act: Callable[[], Any]) -> str:
        """Returns what the disk refuses; several processes cannot mend that, and end with it."""
        try:
            act()
            return ""
        except (OSError, ValueError) as error:
            # Orbax passes on what the disk says in either form.
            if jax.process_count() > 1:
                raise
            reason = str(error).splitlines()[0][:300]
            del error
            self._reopen()
            return reason

    def _find_lack(self, state: Any) -> str:
        """Says that there is too little space, if so: Orbax fails in many words."""
        needed = _SMALL_FILES + sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        free = shutil.disk_usage(self._folder).free
        if free >= needed:
            return ""
        return f"its state takes {needed / 2**20:.1f} MiB, but {free / 2**20:.1f} MiB are free in {self._folder}"

    def _reopen(self) -> None:
        """Starts afresh after a failure, which leaves traces in Orbax's manager, and on a disk that may be full."""
        with contextlib.suppress(DamagedError), silenced():
            self._manager.close()
            gc.collect()
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        # Orbax would do so too, but then fails to save where a writer of a failed save goes on meanwhile.
        if jax.process_index() == 0:
            remove_torn(self._folder)
        return ocp.CheckpointManager(self._folder, options=self._options)

    def restore_latest(self, abstract_state: Any) -> Any | None:
        """Returns the latest whole state, or None if there is no checkpoint.

        Damaged checkpoints are named in the log and moved to WORKDIR/damaged-checkpoints.

        Args:
            abstract_state: shapes, types and shardings of the result; the shardings need not be
                those of the run that saved.

        Raises:
            CheckpointError: if the arrays have other shapes or types, or all checkpoints are damaged.
        """
        read = functools.partial(_read_state, abstract=abstract_state)
        # One looks: a network file system may show another process other folders for a while.
        folders = list_checkpoints(self._folder) if jax.process_index() == 0 else []
        names = json.loads(gather_texts(json.dumps([folder.name for folder in folders]))[0])
        state, damaged = read_newest([self._folder / name for name in names], read)
        if damaged:
            if jax.process_index() == 0:
                for folder in damaged:
                    self._set_aside(folder)
            gather_texts("set aside")
            self._manager.reload()
        return state

    def close(self) -> None:
        """Returns when everything is written; a warning says what could not be."""
        if jax.process_count() == 1:
            self._settle()
        self._manager.close()

    def _set_aside(self, folder: Path) -> None:
        shelf = self._folder.with_name(_DAMAGED_NAME)
        shelf.mkdir(exist_ok=True)
        # The run will come by this step again, and that checkpoint may be damaged too.
        copies = len(list(shelf.glob(f"{folder.name}*")))
        folder.rename(shelf / (f"{folder.name}-{copies}" if copies else folder.name))


def save_backbone(params: Params, recipe: Recipe, *, step: int, workdir: Path) -> Path:
    """Writes a backbone alone, for both networks, as evaluation reads that of a run; returns the checkpoint.

    It has no heads and no optimizer: a run cannot resume from it, but start (`init_from`).

    Args:
        params: of the backbone.
        recipe: stored with it.
        step: that the weights come from.
        workdir: a new folder.

    Raises:
        CheckpointError: if there is a checkpoint in the folder already, or the disk refuses this one.
    """
    if (workdir / CHECKPOINTS_NAME).exists():
        raise CheckpointError(f"{workdir} has checkpoints already: choose a new folder")
    arrays = jax.tree.map(jax.numpy.asarray, params)
    saver = Checkpointer(workdir, recipe)
    try:
        saver.save(step, {"student": {"backbone": arrays}, "teacher": {"backbone": arrays}}, wait=True)
    except SaveError as error:
        raise CheckpointError(str(error)) from error
    finally:
        saver.close()
    return workdir / CHECKPOINTS_NAME / str(step)


def restore_backbone(path: Path | str, *, which: str = "teacher") -> tuple[Recipe, Params, int]:
    """Reads the backbone of a run, and nothing else of its state.

    Args:
        path: a workdir, whose latest whole checkpoint is read, or one checkpoint of it.
        which: "teacher" or "student".

    Returns:
        The recipe of the run, the backbone's parameters on the first device, and the step.

    Raises:
        CheckpointError: if there is no checkpoint, it is damaged, or it fits no network of this version.
    """
    if which not in ("teacher", "student"):
        raise ValueError(f"which={which!r}: choose 'teacher' or 'student'")
    recipe, state, step = _restore_part(path, lambda params: {which: {"backbone": params["backbone"]}})
    return recipe, state[which]["backbone"], step


def restore_networks(path: Path | str) -> tuple[Recipe, dict[str, Any], int]:
    """Reads both networks of a run and its centers; arguments and errors as for `restore_backbone`.

    Returns:
        The recipe of the run; {"student", "teacher", "center", "center_dense"} on the first device;
        and the step.
    """
    return _restore_part(path, lambda params: {"student": params, "teacher": params}, centers=True)


def _restore_part(
    path: Path | str, choose: Callable[[Params], dict[str, Any]], *, centers: bool = False
) -> tuple[Recipe, dict[str, Any], int]:
    folders = find_checkpoints(Path(path).absolute())
    found, _ = read_newest(folders, functools.partial(_read_part, choose=choose, centers=centers))
    assert found is not None, "there is at least one folder, and damage raises"
    return found


def _agree(reason: str) -> str:
    """Returns what the first process that has one gives; all come by here."""
    return next(filter(None, gather_texts(reason)), "")


def _read_state(folder: Path, *, abstract: Any) -> Any:
    return read_arrays(folder, abstract, read_metadata(folder))


def _read_part(
    folder: Path, *, choose: Callable[[Params], dict[str, Any]], centers: bool
) -> tuple[Recipe, dict[str, Any], int]:
    metadata = read_metadata(folder)
    try:
        recipe = recipe_from_dict(metadata["recipe"])
    except RecipeError as error:
        raise CheckpointError(f"{folder} is of another version: {error}") from error
    init = functools.partial(init_params, init_networks(recipe), crop_size=recipe.data.views.crop_size)
    abstract = choose(jax.eval_shape(init, jax.random.key(0)))
    if centers:
        counts = {"center": recipe.head.num_prototypes, "center_dense": recipe.head.num_prototypes_dense}
        abstract |= {name: jax.ShapeDtypeStruct((count,), np.float32) for name, count in counts.items()}
    here = SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), abstract)
    return recipe, read_arrays(folder, abstract, metadata), metadata["step"]
