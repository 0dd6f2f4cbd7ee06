"""Checkpoints as they are read: the newest whole one, and damage told in one line."""

import contextlib
import gc
import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp
from absl import logging as absl_logging

from croc_jax.checkpoints.folder import list_checkpoints
from croc_jax.checkpoints.manifest import DamagedError, check_arrays, check_digest, differing_arrays
from croc_jax.runtime.distributed import gather_texts
from croc_jax.runtime.workdir import CHECKPOINTS_NAME
from croc_jax.training.config import Recipe, recipe_from_dict

T = TypeVar("T")


class CheckpointError(ValueError):
    """There is no checkpoint that can be used; the message says why and what to do."""


def find_checkpoints(path: Path) -> list[Path]:
    """Returns the checkpoints that a path stands for, the latest first.

    Args:
        path: a workdir, its folder of checkpoints, or one checkpoint of it.

    Raises:
        CheckpointError: if it is none of these, or there is no checkpoint yet.
    """
    if not path.is_dir():
        raise CheckpointError(f"{path} does not exist: expected a workdir or a checkpoint in one")
    if path.name.isdigit() and path.parent.name == CHECKPOINTS_NAME:
        return [path]
    inner = path if path.name == CHECKPOINTS_NAME else path / CHECKPOINTS_NAME
    if not inner.is_dir():
        raise CheckpointError(
            f"{path} is not a workdir: it has no folder {CHECKPOINTS_NAME}; name the --workdir of a run, "
            f"or one of its {CHECKPOINTS_NAME}/<step>"
        )
    folders = list_checkpoints(inner)
    if not folders:
        raise CheckpointError(f"no checkpoint in {inner}: the run has not saved one yet")
    return folders


def read_newest(folders: Sequence[Path], read: Callable[[Path], T]) -> tuple[T | None, list[Path]]:
    """Reads the first whole checkpoint; the log says which are passed over, and why.

    Args:
        folders: of checkpoints, the latest first.
        read: of one folder; raises DamagedError where it is damaged.

    Returns:
        What is read, or None if there are no folders; and the damaged folders.

    Raises:
        CheckpointError: if all are damaged.
    """
    damaged = []
    for folder in folders:
        try:
            return read(folder), damaged
        except DamagedError as error:
            if jax.process_index() == 0:
                absl_logging.warning("skipping the damaged checkpoint %s: %s", folder, error)
            damaged.append(folder)
    if damaged:
        names = ", ".join(str(folder) for folder in damaged)
        raise CheckpointError(f"damaged: {names}; no whole one is left, so start anew in another workdir")
    return None, damaged


def saved_recipe(workdir: Path) -> Recipe | None:
    """Returns the recipe of the newest checkpoint whose metadata are whole, if any; one process may ask alone."""
    folder = workdir / CHECKPOINTS_NAME
    for checkpoint in list_checkpoints(folder) if folder.is_dir() else ():
        with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
            metadata = json.loads((checkpoint / "metadata" / "metadata").read_text(encoding="utf-8"))
            check_digest(metadata)
            return recipe_from_dict(metadata["recipe"])
    return None


def read_metadata(folder: Path) -> Mapping[str, Any]:
    """Returns what a checkpoint says of itself; raises DamagedError if that is not what was written."""
    own = _own_part()
    with _damage_only():
        with contextlib.closing(ocp.Checkpointer(ocp.JsonCheckpointHandler(), multiprocessing_options=own)) as reader:
            metadata = reader.restore(folder / "metadata")
        check_digest(metadata)
    return metadata


def read_arrays(folder: Path, abstract: Any, metadata: Mapping[str, Any]) -> Any:
    """Returns arrays of a checkpoint.

    Args:
        folder: of the checkpoint.
        abstract: shapes, types and shardings of a tree, which may be a part of what was saved.
        metadata: of the checkpoint.

    Raises:
        CheckpointError: if what was saved has other shapes or types.
        DamagedError: if the arrays are not those that were saved, in any process of the run.
    """
    differences = differing_arrays(abstract, metadata)
    if differences:
        more = f" and {len(differences) - 1} more" if len(differences) > 1 else ""
        raise CheckpointError(f"{folder} holds another architecture: {differences[0]}{more}")
    how = ocp.checkpoint_utils.construct_restore_args(abstract)
    request = ocp.args.PyTreeRestore(item=abstract, restore_args=how, partial_restore=True)  # pyright: ignore
    own = _own_part()
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=own)
    with _damage_only(), contextlib.closing(ocp.Checkpointer(handler, multiprocessing_options=own)) as reader:
        arrays = reader.restore(folder / "state", args=request)
    # All have read their parts before the sums of arrays that are spread over processes are compared.
    with _damage_only():
        check_arrays(arrays, metadata)
    return arrays


def _own_part() -> ocp.options.MultiprocessingOptions:
    """Makes a process read for itself: one that fails keeps no other waiting, and `_damage_only` tells them."""
    index = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=index, active_processes={index}, barrier_sync_key_prefix=f"process_{index}"
    )


@contextlib.contextmanager
def _damage_only() -> Iterator[None]:
    """Raises DamagedError for whatever damage makes this process raise, or any other one; all come by here."""
    reason = ""
    try:
        with silenced():
            yield
    except DamagedError as error:
        reason = str(error)
    found = next(filter(None, gather_texts(reason)), None)
    if found:
        raise DamagedError(found)


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Turns whatever a damaged file makes Orbax raise into DamagedError.

    Orbax also leaves failed tasks behind, which would write pages to the log when they are
    collected; that is done here, in silence.
    """
    hook, disabled = sys.unraisablehook, logging.root.manager.disable
    sys.unraisablehook = lambda unraisable: None
    logging.disable(logging.CRITICAL)
    try:
        yield
    except (DamagedError, MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        del error
        gc.collect()
        raise DamagedError(reason) from None
    finally:
        sys.unraisablehook = hook
        logging.disable(disabled)
