"""The checkpoints of a run: when to save, what to keep, and which one to resume from."""

import datetime
import errno
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils
from jaxtyping import PyTree
from orbax.checkpoint import checkpoint_managers

from croc_jax.checkpoints.best import Best, KeepKnown, Save, Scores
from croc_jax.checkpoints.manifest import CorruptError, make_manifest
from croc_jax.checkpoints.param_mapping import Params
from croc_jax.checkpoints.restore import (
    CHECKPOINTS_NAME,
    SKIPPING,
    CheckpointError,
    list_checkpoints,
    no_whole_checkpoint,
    parse_error,
    restore_state,
)
from croc_jax.training.config import Recipe

_KEEP_LATEST = 2
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
# All files of a checkpoint but its arrays.
_SMALL_FILES_BYTES = 2**20
_SECONDS_TO_REMOVE = 30.0


class Checkpointer:
    """The checkpoints of one run, in WORKDIR/checkpoints/<step>/.

    The two latest are kept, those at every multiple of `keep_every_steps`, and the best by `evaluation.best`. If
    several processes form the run, all make the same calls, and each writes and reads the shards of its own devices.
    """

    def __init__(
        self,
        workdir: Path,
        recipe: Recipe,
        *,
        keep_every_steps: int | None = None,
        save_every_minutes: float | None = None,
        notes: Mapping[str, Any] | None = None,
    ) -> None:
        """Opens the folder, and removes what interrupted saves have left.

        Args:
            workdir: folder of the run.
            recipe: settings of the run; stored in each checkpoint.
            keep_every_steps: steps between two checkpoints that are saved in any case, and kept for good.
            save_every_minutes: minutes from one save (or the start) to the next.
            notes: what else to store in each checkpoint, as JSON: the images, versions, devices.

        Raises:
            OSError: if the folder cannot be written, in any process of the run.
        """
        self._folder = workdir.absolute() / CHECKPOINTS_NAME
        self._recipe, self._notes = recipe, notes or {}
        self._corrupt: set[int] = set()
        saving: list[checkpoint_managers.SaveDecisionPolicy] = []
        keeping: list[checkpoint_managers.PreservationPolicy] = [checkpoint_managers.LatestN(_KEEP_LATEST)]
        if keep_every_steps:
            saving.append(checkpoint_managers.FixedIntervalPolicy(keep_every_steps))
            keeping.append(checkpoint_managers.EveryNSteps(keep_every_steps))
        if save_every_minutes is not None:
            seconds = round(60 * save_every_minutes)
            saving.append(checkpoint_managers.ContinuousCheckpointingPolicy(minimum_interval_secs=seconds))
        self._save_policy = checkpoint_managers.AnySavePolicy(saving)
        _raise_together(self._prepare_folder)
        saved = [int(folder.name) for folder in list_checkpoints(self._folder)]
        self._scores = Scores(self._folder, recipe.evaluation.best, saved, self._corrupt)
        self._options = ocp.CheckpointManagerOptions(
            # Orbax would remove what interrupted saves have left in a thread that may outlive the program.
            cleanup_tmp_directories=False,
            preservation_policy=KeepKnown(keeping, self._scores, self._corrupt),
        )
        self._manager = self._open()
        self._last = Save(self._manager.latest_step() or 0, _now())
        self._closed = False
        self._scores.write()

    def _open(self) -> ocp.CheckpointManager:
        # `restore` reads this format without Orbax.
        arrays = ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=False)
        handlers = {"state": arrays, "metadata": ocp.JsonCheckpointHandler()}
        return ocp.CheckpointManager(self._folder, item_handlers=handlers, options=self._options)

    def latest_step(self) -> int | None:
        """Returns the step of the latest checkpoint that is not known to be corrupt, saved or being saved."""
        return max(set(self._manager.all_steps()) - self._corrupt, default=None)

    def latest_path(self) -> Path | None:
        """Returns the folder of the latest finished checkpoint that is not known to be corrupt, if any."""
        try:
            found = list_checkpoints(self._folder)
        except OSError:
            return None
        return next((folder for folder in found if int(folder.name) not in self._corrupt), None)

    def note_scores(self, step: int, scores: Mapping[str, float]) -> None:
        """Takes the scores of a state, which are stored with it if it is saved; it is due if it is the best so far."""
        self._scores.note(step, scores)

    def best(self) -> Best | None:
        """Returns the best whole checkpoint, saved or being saved, or None if none has the score."""
        return self._scores.best()

    def should_save(self, step: int) -> bool:
        """Returns whether a state is due; all processes must ask after the same steps, and get the same answer."""
        context = checkpoint_managers.DecisionContext(
            is_saving_in_progress=self._manager.is_saving_in_progress(),
            reached_preemption=False,  # the last state of a run is saved in any case
            multiprocessing_options=ocp.options.MultiprocessingOptions(),
        )
        is_best = self._scores.is_new_best(step)
        return is_best or self._save_policy.should_save(Save(step, _now()), [self._last], context=context)

    def save(self, step: int, state: PyTree, *, wait: bool = False) -> None:
        """Takes a copy of a state at once and writes it in the background.

        Args:
            step: step of the state; nothing is written if it has been saved already, and is not corrupt.
            state: a tree of arrays; may be donated afterwards.
            wait: return only when everything is written.

        Raises:
            OSError: if the folder cannot be written, the disk is too full, or the save before this one has failed.
                Nothing of this state is written then, and the next call tries again.
        """
        self._finish()
        if step in self._manager.all_steps() and step not in self._corrupt:
            return
        self._last = Save(step, _now())
        _raise_together(lambda: self._check_folder(state))
        if step in self._corrupt:
            self._manager.delete(step)
            self._corrupt.remove(step)
        scores = self._scores.of(step)
        notes = {**self._notes, "scores": dict(scores)} if scores else self._notes
        manifest = make_manifest(self._recipe, step, state, notes)
        items = {"state": ocp.args.PyTreeSave(state), "metadata": ocp.args.JsonSave(manifest)}  # pyright: ignore
        # In this call, Orbax decides which ones to keep.
        self._scores.store(step, scores)
        self._attempt(lambda: self._manager.save(step, args=ocp.args.Composite(**items), force=True))
        if wait:
            self._finish()

    def _finish(self) -> None:
        """Waits for the save that is being written; raises OSError if it has failed."""
        self._attempt(self._manager.wait_until_finished)
        self._scores.write()

    def _attempt(self, act: Callable[[], Any]) -> None:
        """Raises what the disk refuses as OSError; a process that is alone may try again, with a new manager."""
        try:
            act()
        except (OSError, ValueError) as error:
            self._scores.store(self._last.step, {})
            # TensorStore passes on what the disk says as ValueError.
            text, number = parse_error(error) if isinstance(error, ValueError) else (error.strerror, error.errno)
            # The failure stays in Orbax's manager. Several processes would wait for each other here.
            if jax.process_count() == 1:
                self._manager.close()
                self._remove_failed()
                self._manager = self._open()
            message = f"the state of step {self._last.step} could not be saved: {text or error}"
            if jax.process_count() > 1 and number in DISK_FULL:
                # Other processes may not have failed: this one cannot go on alone, as after a disk that all find full.
                number = errno.EIO
            raise OSError(number or errno.EIO, message) from error

    def _remove_failed(self) -> None:
        """Removes what a failed save has left, until its writers have ended: they would mix with those of the next."""
        deadline = time.monotonic() + _SECONDS_TO_REMOVE
        pattern, found = f"*{ocp.utils.TMP_DIR_SUFFIX}*", True
        while found and time.monotonic() < deadline:
            found = list(self._folder.glob(pattern))
            for folder in found:
                shutil.rmtree(folder, ignore_errors=True)
            if found:
                time.sleep(0.3)

    def _prepare_folder(self) -> None:
        """Removes what interrupted saves have left; raises OSError if the folder cannot be written."""
        self._check_folder()
        if jax.process_index() == 0:
            self._remove_failed()

    def _check_folder(self, state: PyTree = None) -> None:
        """Raises OSError if the folder cannot be written, or has too little space for a state."""
        self._folder.mkdir(parents=True, exist_ok=True)
        if not os.access(self._folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "cannot write checkpoints", str(self._folder))
        needed = _SMALL_FILES_BYTES + sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        free = shutil.disk_usage(self._folder).free
        if state is not None and free < needed:
            sizes = f"a checkpoint takes {needed / 2**20:.1f} MiB, and {free / 2**20:.1f} MiB are free"
            raise OSError(errno.ENOSPC, sizes, str(self._folder))

    def restore_latest(self, abstract_state: PyTree) -> PyTree | None:
        """Returns the state of the latest whole checkpoint, or None if there is no checkpoint.

        One that is corrupt is passed over with a warning and stays where it is, until its step is saved again.

        Args:
            abstract_state: shapes, types and shardings of the result; the shardings need not be those of the run
                that saved.

        Raises:
            CheckpointError: if the arrays have other shapes or types, or all checkpoints are corrupt.
            OSError: if the file system fails; nothing on disk has changed.
        """
        passed = []
        while (step := self._agreed_latest_step()) is not None:
            folder = self._folder / str(step)
            try:
                return restore_state(folder, abstract_state)
            except CorruptError as error:
                if jax.process_index() == 0:
                    logging.warning(SKIPPING, folder, error)
            self._corrupt.add(step)
            passed.append(folder)
        if passed:
            raise no_whole_checkpoint(passed)
        return None

    def _agreed_latest_step(self) -> int | None:
        """Returns what process 0 sees: a network file system may show another process an older folder for a while."""
        latest = self.latest_step()
        step = int(multihost_utils.broadcast_one_to_all(np.int32(-1 if latest is None else latest)))
        return None if step < 0 else step

    def close(self) -> None:
        """Waits until everything is written, and may be called again; raises OSError if that failed."""
        try:
            self._finish()
        finally:
            if not self._closed:
                self._closed = True
                self._manager.close()


def save_backbone(params: Params, recipe: Recipe, *, step: int, workdir: Path) -> Path:
    """Writes a backbone alone, for both networks, as evaluation reads that of a run; returns the checkpoint.

    It has no heads and no optimizer: a run cannot resume from it, but start (`init_from`).

    Args:
        params: parameters of the backbone.
        recipe: settings that are stored with it.
        step: step that the weights come from.
        workdir: a new folder.

    Raises:
        CheckpointError: if there is a checkpoint in the folder already.
        OSError: if the disk refuses this one.
    """
    if (workdir / CHECKPOINTS_NAME).exists():
        raise CheckpointError(f"{workdir} has checkpoints already: choose a new folder")
    arrays = jax.tree.map(jnp.asarray, params)
    saver = Checkpointer(workdir, recipe)
    saver.save(step, {"student": {"backbone": arrays}, "teacher": {"backbone": arrays}}, wait=True)
    saver.close()
    return workdir / CHECKPOINTS_NAME / str(step)


def _raise_together(check: Callable[[], None]) -> None:
    """Makes a check in every process; raises OSError in all of them if one fails."""
    failure = None
    try:
        check()
    except OSError as error:
        failure = error
    numbers = np.ravel(multihost_utils.process_allgather(np.int32(failure.errno or errno.EIO if failure else 0)))
    if failure:
        raise failure
    if numbers.any():
        raise OSError(int(numbers.max()), f"process {numbers.argmax()} cannot write checkpoints; see its log")


def _now() -> datetime.datetime:
    return datetime.datetime.now(tz=datetime.UTC)
