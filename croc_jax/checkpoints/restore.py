"""Reads checkpoints; distinguishes one that is corrupt from a file system that fails.

TensorStore, the library that Orbax writes arrays with, reads them here without Orbax: its errors then arrive one by one
with their status codes, no other process waits at a barrier for one that failed, and the log stays readable.
"""

import errno
import functools
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tensorstore
from absl import logging
from jax.experimental import multihost_utils
from jax.sharding import SingleDeviceSharding
from jaxtyping import PyTree

from croc_jax.checkpoints.file_kinds import describe_folder
from croc_jax.checkpoints.manifest import CorruptError, check_arrays, check_digest, find_differences, flatten_tree
from croc_jax.checkpoints.param_mapping import Params
from croc_jax.training.config import Recipe, RecipeError, recipe_from_dict
from croc_jax.training.forward import init_networks, init_params

CHECKPOINTS_NAME = "checkpoints"
# Of a checkpoint: where its metadata lie.
_MANIFEST = "metadata/metadata"
# The warning that a checkpoint is passed over.
SKIPPING = "skipping the corrupt checkpoint %s: %s"
# Status codes of TensorStore for files that are cut short, or cannot be decoded.
_CORRUPT_CODES = ("DATA_LOSS", "FAILED_PRECONDITION", "OUT_OF_RANGE")
# Of all errors of the operating system, these mean a checkpoint without one of its files.
_MISSING = (errno.ENOENT, errno.EISDIR)
_CACHE_BYTES = 10**8


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
    # A checkpoint may have been moved elsewhere.
    if (path.name.isdigit() and path.parent.name == CHECKPOINTS_NAME) or (path / _MANIFEST).is_file():
        return [path]
    inner = path if path.name == CHECKPOINTS_NAME else path / CHECKPOINTS_NAME
    if not inner.is_dir():
        raise CheckpointError(f"{path} is no checkpoint: {describe_folder(path)}")
    folders = list_checkpoints(inner)
    if not folders:
        raise CheckpointError(f"no checkpoint in {inner}: the run has not saved one yet")
    return folders


def list_checkpoints(folder: Path) -> list[Path]:
    """Returns the finished checkpoints in a folder, the latest first; those being written have longer names."""
    found = [path for path in folder.iterdir() if path.name.isdigit()]
    return sorted(found, key=lambda path: int(path.name), reverse=True)


def no_whole_checkpoint(folders: list[Path]) -> CheckpointError:
    """Returns the error for a run whose checkpoints are all corrupt."""
    names = ", ".join(str(folder) for folder in folders)
    return CheckpointError(f"corrupt: {names}; no whole checkpoint is left: start again in another workdir")


def restore_backbone(path: Path | str, *, which: str = "teacher") -> tuple[Recipe, Params, int]:
    """Reads the backbone of a run, and nothing else of its state.

    Args:
        path: a workdir, whose latest whole checkpoint is read, or one checkpoint of it.
        which: "teacher" or "student".

    Returns:
        The settings of the run, the backbone's parameters on the first device, and the step.

    Raises:
        CheckpointError: if there is no checkpoint, all are corrupt, or it fits no network of this version.
        OSError: if the file system fails.
    """
    if which not in ("teacher", "student"):
        raise ValueError(f"which={which!r}: choose 'teacher' or 'student'")
    recipe, state, step = _restore_part(path, lambda params: {which: {"backbone": params["backbone"]}})
    return recipe, state[which]["backbone"], step


def restore_networks(path: Path | str) -> tuple[Recipe, dict[str, Any], int]:
    """Reads both networks of a run and its centers; arguments and errors as for `restore_backbone`.

    Returns:
        The settings of the run; {"student", "teacher", "center", "center_dense"} on the first device, and
        "center_masked" of a run with masked patches; and the step.
    """
    return _restore_part(path, lambda params: {"student": params, "teacher": params}, centers=True)


def _restore_part(
    path: Path | str, choose: Callable[[Params], dict[str, Any]], *, centers: bool = False
) -> tuple[Recipe, dict[str, Any], int]:
    corrupt = []
    for folder in find_checkpoints(Path(path).absolute()):
        try:
            manifest = read_manifest(folder)
            recipe = recipe_from_dict(manifest["recipe"])
            state = read_arrays(folder, _abstract_part(recipe, choose, centers=centers), manifest)
            check_arrays(state, manifest)
            return recipe, state, manifest["step"]
        except RecipeError as error:
            raise CheckpointError(f"{folder} is of another version: {error}") from error
        except CorruptError as error:
            logging.warning(SKIPPING, folder, error)
            corrupt.append(folder)
    raise no_whole_checkpoint(corrupt)


def _abstract_part(recipe: Recipe, choose: Callable[[Params], dict[str, Any]], *, centers: bool) -> dict[str, Any]:
    """Returns shapes and types of a part of a state, on the first device."""
    init = functools.partial(init_params, init_networks(recipe), crop_size=recipe.data.views.crop_size)
    abstract = choose(jax.eval_shape(init, jax.random.key(0)))
    if centers:
        counts = {"center": recipe.head.num_prototypes, "center_dense": recipe.head.num_prototypes_dense}
        if recipe.objective.masked.weight:
            counts["center_masked"] = recipe.objective.masked.prototypes
        abstract |= {name: jax.ShapeDtypeStruct((count,), np.float32) for name, count in counts.items()}
    device = SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), abstract)


def restore_state(folder: Path, abstract: PyTree) -> PyTree:
    """Reads a whole state; every process of the run calls this, and reads the shards of its own devices.

    Args:
        folder: a checkpoint.
        abstract: shapes, types and shardings of the state; the shardings need not be those of the run that saved.

    Raises:
        CorruptError: if an array is not what was written, in any process.
        CheckpointError: if the checkpoint has other shapes or types.
        OSError: if the file system fails, in any process.
    """
    manifest = _agree(folder, lambda: read_manifest(folder))
    state = _agree(folder, lambda: read_arrays(folder, abstract, manifest))
    # Sums of arrays that several processes hold are exchanged: all of them must have read theirs.
    _agree(folder, lambda: check_arrays(state, manifest))
    return state


def _agree(folder: Path, act: Callable[[], Any]) -> Any:
    """Returns what a function returns, if it raises in no process; else raises the same kind of error in all."""
    result, failure = None, None
    try:
        result = act()
    except Exception as error:  # whatever it is, it is raised once the other processes know
        failure = error
    status = 0 if failure is None else 1 if isinstance(failure, CorruptError) else 2
    statuses = np.ravel(multihost_utils.process_allgather(np.int32(status)))
    if failure is not None and statuses.max() == status:
        raise failure
    if statuses.max() == 2:
        raise OSError(errno.EIO, f"process {statuses.argmax()} could not read the checkpoint; see its log", str(folder))
    if statuses.max() == 1:
        raise CorruptError(f"corrupt for process {statuses.argmax()}")
    return result


def read_manifest(folder: Path) -> dict[str, Any]:
    """Returns the metadata of a checkpoint.

    Raises:
        CorruptError: if they are missing, or not what was written.
        OSError: if the file system fails.
    """
    try:
        manifest = json.loads((folder / _MANIFEST).read_bytes())
    except FileNotFoundError as error:
        raise _missing_part(folder, str(error)) from None
    except (ValueError, RecursionError) as error:
        raise CorruptError(f"its metadata cannot be parsed: {error}") from None
    if not isinstance(manifest, dict):
        raise CorruptError("its metadata are no dictionary")
    check_digest(manifest)
    return manifest


def read_arrays(folder: Path, abstract: PyTree, manifest: Mapping[str, Any]) -> PyTree:
    """Returns arrays of a checkpoint.

    Args:
        folder: the checkpoint.
        abstract: shapes, types and shardings of a tree, which may be a part of what was saved.
        manifest: metadata of the checkpoint.

    Raises:
        CheckpointError: if what was saved has other shapes or types.
        CorruptError: if a part is missing, or cannot be decoded.
        OSError: if the file system fails.
    """
    differences = find_differences(abstract, manifest)
    if differences:
        more = f" and {len(differences) - 1} more" if len(differences) > 1 else ""
        raise CheckpointError(f"{folder} holds another architecture: {differences[0]}{more}")
    context = tensorstore.Context({"cache_pool": {"total_bytes_limit": _CACHE_BYTES}})
    # TensorStore takes no relative path, nor one with "..".
    database = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{os.path.realpath(folder / 'state')}/"}}
    try:
        opening = {
            name: tensorstore.open(
                {"driver": "zarr", "kvstore": {**database, "path": f"{name.replace('/', '.')}/"}},
                open=True,
                context=context,
            )
            for name in flatten_tree(abstract)
        }
        stores = {name: future.result() for name, future in opening.items()}
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: _read_array(stores[jax.tree_util.keystr(path, simple=True, separator="/")], leaf),
            abstract,
        )
    except ValueError as error:
        raise _classify(error, folder) from None


def _read_array(store: tensorstore.TensorStore, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    """Reads the shards of this process's devices, each once."""

    @functools.cache
    def read(index: tuple[tuple[int | None, int | None], ...]) -> np.ndarray:
        return store[tuple(slice(*ends) for ends in index)].read().result()

    return jax.make_array_from_callback(
        leaf.shape, leaf.sharding, lambda index: read(tuple((part.start, part.stop) for part in index or ()))
    )


def parse_error(error: ValueError) -> tuple[str, int | None]:
    """Returns the text of an error of TensorStore, without its long details, and the `errno` that it states, if any."""
    text = re.split(r" \[(?:os_error_code|tensorstore_spec)", str(error))[0]
    stated = (code for code in errno.errorcode if re.search(rf": {re.escape(os.strerror(code))}(;|$)", text))
    return text, next(stated, None)


def _classify(error: ValueError, folder: Path) -> Exception:
    """Returns what an error of TensorStore means; one that is not known stays as it is."""
    text, code = parse_error(error)
    if code is not None and code not in _MISSING:
        return OSError(code, text, str(folder))
    status, _, reason = text.partition(": ")
    if status == "NOT_FOUND":
        return _missing_part(folder, reason)
    # INVALID_ARGUMENT, such as for a compressed stream that cannot be decoded, comes without its status.
    if text.startswith(("Error opening", "Error reading")):
        return CorruptError(text)
    return CorruptError(reason) if status in _CORRUPT_CODES else error


def _missing_part(folder: Path, reason: str) -> Exception:
    """Returns the error for a missing file: the checkpoint is corrupt, unless all of it is gone, as of a lost mount."""
    if folder.is_dir():
        return CorruptError(reason)
    return FileNotFoundError(errno.ENOENT, "vanished while it was read", str(folder))
