"""Whole checkpoints of the official CrOC code, in and out: both networks with their heads, and the centers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from croc_jax.checkpoints.convert import from_official, to_official
from croc_jax.checkpoints.export import write_arrays
from croc_jax.checkpoints.flat_run import flatten_run
from croc_jax.checkpoints.foreign import ForeignWeightsError, load_foreign_backbone, read_contents
from croc_jax.checkpoints.names import Params, WeightNamesError
from croc_jax.checkpoints.orbax import restore_networks
from croc_jax.models import BackboneConfig

_WRAPPERS = ("module.", "_orig_mod.")


class NetworksOfRun(NamedTuple):
    """What a run has learned.

    Attributes:
        config: of the backbone.
        image_size: side of the images that the position embedding was learned for.
        student: {"backbone": ..., "head": ...}.
        teacher: alike.
        centers: of the teacher's answers: for [CLS], and for centroids.
        epoch: that the file states, or the step of a run of ours.
    """

    config: BackboneConfig
    image_size: int
    student: Params
    teacher: Params
    centers: tuple[np.ndarray, np.ndarray]
    epoch: int


def load_official_run(file: Path) -> NetworksOfRun:
    """Reads a whole checkpoint of the official CrOC code.

    Args:
        file: checkpoint.pth, as main_croc.py writes it.

    Raises:
        FileNotFoundError: if there is no such file.
        ForeignWeightsError: for another kind of file, or weights that do not fit.
    """
    contents = read_contents(file)
    if missing := [name for name in ("student", "teacher", "croc_loss") if name not in contents]:
        raise ForeignWeightsError(f"{file} is no whole checkpoint of CrOC: it lacks {', '.join(missing)}")
    networks = {}
    for which in ("student", "teacher"):
        try:
            networks[which] = from_official(_unwrap(contents[which]))
        except WeightNamesError as error:
            raise ForeignWeightsError(f"{file}, {which}: {error}") from error
        if "head" not in networks[which]:
            raise ForeignWeightsError(f"{file}, {which}: there is no head; load the backbone alone")
    # Tells the architecture, and checks that nothing of the backbone is missing.
    backbone = load_foreign_backbone(file)
    loss = contents["croc_loss"]
    centers = np.asarray(loss["center"], np.float32).ravel(), np.asarray(loss["center_c"], np.float32).ravel()
    return NetworksOfRun(
        backbone.config, backbone.image_size, networks["student"], networks["teacher"], centers, backbone.epoch
    )


def load_networks(source: Path) -> NetworksOfRun:
    """Reads the networks of a run of ours, or of the official code.

    Args:
        source: a workdir, a checkpoint of one, or a file as for `load_official_run`.

    Raises:
        CheckpointError: if there is no checkpoint of ours that can be used.
        ForeignWeightsError: see `load_official_run`.
    """
    if source.is_file():
        return load_official_run(source)
    recipe, state, step = restore_networks(source)
    centers = np.asarray(state["center"]), np.asarray(state["center_dense"])
    size = recipe.data.views.crop_size
    return NetworksOfRun(recipe.backbone, size, state["student"], state["teacher"], centers, step)


def export_run(workdir: Path, file: Path) -> Path:
    """Writes a run as the official code's checkpoint.pth, without its optimizer; returns the file.

    Args:
        workdir: of the run, or one checkpoint of it.
        file: a .pth file; or a .safetensors file, which this package reads alone (`flat_run`).

    Raises:
        CheckpointError: if there is no checkpoint that can be used.
        ExportError: for another kind of file, or where PyTorch is not installed.
    """
    networks = load_networks(workdir)
    contents = {
        # The official student sits in PyTorch's wrapper for several devices.
        "student": {f"module.{name}": array for name, array in to_official(networks.student, networks.config).items()},
        "teacher": to_official(networks.teacher, networks.config),
        "croc_loss": {"center": networks.centers[0][None], "center_c": networks.centers[1][None]},
        "epoch": networks.epoch,
    }
    write_arrays(flatten_run(contents) if file.suffix == ".safetensors" else contents, file)
    return file


def _unwrap(weights: Mapping[str, Any]) -> dict[str, np.ndarray]:
    arrays = {}
    for name, array in weights.items():
        for wrapper in _WRAPPERS:
            name = name.removeprefix(wrapper)
        arrays[name] = np.asarray(array, np.float32)
    return arrays
