"""Whole checkpoints of the official code of CrOC, in and out, and of DINO, in: both networks, heads and centers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from croc_jax.checkpoints.convert import HEAD_TABLE, read_head, split_official, to_official
from croc_jax.checkpoints.export import ExportError, write_arrays
from croc_jax.checkpoints.flat_run import flatten_run
from croc_jax.checkpoints.infer_architecture import ReadBackbone, compare_shapes, read_backbone, shapes_of
from croc_jax.checkpoints.pretrained_mapping import fault_of, no_place
from croc_jax.checkpoints.restore import restore_networks
from croc_jax.checkpoints.vit_mapping import Params, nest
from croc_jax.checkpoints.weight_files import ForeignWeightsError, check_names, is_foreign, read_contents, read_epoch
from croc_jax.models import BackboneConfig, HeadConfig, make_head

_WRAPPERS = ("module.", "_orig_mod.")
# The teacher tells the architecture; the student must have the same.
_NETWORKS = ("teacher", "student")
# Of each official loss, its centers and their sizes.
_LOSSES = {
    "croc_loss": {"center": "num_prototypes", "center_c": "num_prototypes_dense"},
    "dino_loss": {"center": "num_prototypes"},
}
_LAYERS = {"num_prototypes": "last_layer", "num_prototypes_dense": "last_layer_dense"}
# Where the sizes of a head show: path and axis.
_HEAD_SIZES = {
    "hidden_dim": (("mlp_2/bias", 0), ("mlp_1/bias", 0), ("mlp_3/kernel", 0)),
    "bottleneck_dim": (("mlp_3/bias", 0), ("last_layer/direction", 1), ("last_layer_dense/direction", 1)),
    "num_prototypes": (("last_layer/direction", 0), ("last_layer/scale", 0)),
    "num_prototypes_dense": (("last_layer_dense/direction", 0), ("last_layer_dense/scale", 0)),
}

_Heads = Mapping[str, Mapping[str, np.ndarray]]


class NetworksOfRun(NamedTuple):
    """What a run has learned.

    Attributes:
        config: of the backbone.
        image_size: side of the images that the position embedding was learned for.
        student: {"backbone": ..., "head": ...}.
        teacher: alike.
        centers: of the teacher's answers: for [CLS], and for centroids. DINO has no answers for
            centroids: the second is None, and the heads have no last layer for them.
        epoch: that the file states, or the step of a run of ours.
        guessed: see `croc_jax.checkpoints.infer_architecture.ReadBackbone`; nothing of a run of ours.
    """

    config: BackboneConfig
    image_size: int
    student: Params
    teacher: Params
    centers: tuple[np.ndarray, np.ndarray | None]
    epoch: int
    guessed: dict[str, Any]


def load_official_run(file: Path, *, num_heads: int | None = None, default_heads: int | None = None) -> NetworksOfRun:
    """Reads a whole checkpoint of the official code of CrOC or DINO.

    Args:
        file: checkpoint.pth, as main_croc.py and main_dino.py write it.
        num_heads: of a transformer whose file does not tell; see `load_foreign_backbone`.
        default_heads: in place of heads of 64 features, if they divide the width.

    Raises:
        FileNotFoundError: if there is no such file.
        ForeignWeightsError: for another kind of file; or listing every weight of student, teacher
            and centers that is unknown, missing or of another shape.
    """
    contents = read_contents(file)
    loss = next((name for name in _LOSSES if isinstance(contents.get(name), Mapping)), None)
    missing = [name for name in _NETWORKS if not isinstance(contents.get(name), Mapping)]
    if missing or loss is None:
        lost = ", ".join([*missing, *([] if loss else [" or ".join(_LOSSES)])])
        raise ForeignWeightsError(f"{file} is no whole checkpoint of CrOC or DINO: it lacks {lost}")
    for which in _NETWORKS:
        check_names(contents[which], file)
    backbones, heads, wrong = _read_networks(contents, num_heads=num_heads, default_heads=default_heads)
    wrong += _compare_heads(heads, backbones, layers=[_LAYERS[size] for size in _LOSSES[loss].values()])
    centers, of_centers = _read_centers(contents[loss], loss, heads)
    if wrong or of_centers:
        faults = "; ".join(wrong + of_centers)
        raise ForeignWeightsError(f"{file} is no whole checkpoint of CrOC or DINO that we know: {faults}")
    student, teacher = (
        {"backbone": backbones[which].params, "head": nest(heads[which])} for which in ("student", "teacher")
    )
    return NetworksOfRun(
        *backbones["teacher"].architecture,
        student,
        teacher,
        (centers["center"], centers.get("center_c")),
        read_epoch(contents),
        backbones["teacher"].guessed,
    )


def load_networks(source: Path, *, num_heads: int | None = None, default_heads: int | None = None) -> NetworksOfRun:
    """Reads the networks of a run of ours, or of the official code.

    Args:
        source: a workdir, a checkpoint of one, or a file as for `load_official_run`.
        num_heads: of such a file.
        default_heads: of such a file that does not tell.

    Raises:
        CheckpointError: if there is no checkpoint of ours that can be used.
        FileNotFoundError: if there is no such file.
        ForeignWeightsError: see `load_official_run`.
        ValueError: if the number of heads is given for a run of ours, which knows it.
    """
    if is_foreign(source):
        return load_official_run(source, num_heads=num_heads, default_heads=default_heads)
    if num_heads is not None:
        raise ValueError(f"num_heads={num_heads}: {source} is a run of ours, which knows its own; leave it out")
    recipe, state, step = restore_networks(source)
    centers = np.asarray(state["center"]), np.asarray(state["center_dense"])
    size = recipe.data.views.crop_size
    return NetworksOfRun(recipe.backbone, size, state["student"], state["teacher"], centers, step, {})


def export_run(workdir: Path, file: Path) -> Path:
    """Writes a run as the official code's checkpoint.pth, without its optimizer; returns the file.

    Args:
        workdir: of the run, or one checkpoint of it.
        file: a .pth file; or a .safetensors file, which this package reads alone (`flat_run`).

    Raises:
        CheckpointError: if there is no checkpoint that can be used.
        ExportError: for another kind of file, where PyTorch is not installed, or for a run of DINO.
    """
    networks = load_networks(workdir)
    center, center_dense = networks.centers
    if center_dense is None:
        raise ExportError(f"{workdir} is a run of DINO: it has no head for centroids, which the official code needs")
    contents = {
        # The official student sits in PyTorch's wrapper for several devices.
        "student": {f"module.{name}": array for name, array in to_official(networks.student, networks.config).items()},
        "teacher": to_official(networks.teacher, networks.config),
        "croc_loss": {"center": center[None], "center_c": center_dense[None]},
        "epoch": networks.epoch,
    }
    write_arrays(flatten_run(contents) if file.suffix == ".safetensors" else contents, file)
    return file


def _read_networks(
    contents: Mapping[str, Any], *, num_heads: int | None, default_heads: int | None
) -> tuple[dict[str, ReadBackbone], dict[str, dict[str, np.ndarray]], list[str]]:
    """Returns backbones, and heads by our path, of both networks; and what is wrong with each by itself."""
    backbones, heads, wrong = {}, {}, []
    for which in _NETWORKS:
        backbone, head, unknown = split_official(_unwrap(contents[which]))
        heads[which], faults = read_head(head)
        wrong += [f"{which}: {fault}" for fault in no_place(unknown) + faults]
        if backbone:
            like = backbones["teacher"].architecture if "teacher" in backbones else None
            backbones[which] = read_backbone(backbone, num_heads=num_heads, default_heads=default_heads, like=like)
            wrong += [f"{which}.backbone: {fault}" for fault in backbones[which].wrong]
        wrong += [f"{which}: no {part}" for part, names in (("backbone", backbone), ("head", head)) if not names]
    return backbones, heads, wrong


def _compare_heads(heads: _Heads, backbones: Mapping[str, ReadBackbone], *, layers: Sequence[str]) -> list[str]:
    """Returns what the heads lack, have in excess or in another shape, in words; a missing head is no news."""
    sizes: Any = {name: _size_of(heads, name) or 1 for name in _HEAD_SIZES}
    width = next((found.architecture.width for found in backbones.values()), 1)
    head = make_head(HeadConfig(**sizes), dtype=np.float32)
    token = jax.ShapeDtypeStruct((1, width), np.float32)
    shapes = shapes_of(jax.eval_shape(head.init, jax.random.key(0), token)["params"])
    expected = {place: shape for place, shape in shapes.items() if "last" not in place or place.split("/")[0] in layers}
    names = {place: f"head.{name}" for name, place in HEAD_TABLE.items()}
    return [
        f"{which}.head: {fault}"
        for which, flat in heads.items()
        if flat
        for fault in compare_shapes(flat, expected, name_of=names.__getitem__)
    ]


def _size_of(heads: _Heads, name: str) -> int | None:
    """Returns a size of the heads as the first array tells it that there is."""
    found = (
        flat[path].shape[axis]
        for path, axis in _HEAD_SIZES[name]
        for flat in heads.values()
        if path in flat and flat[path].ndim > axis
    )
    return next(found, None)


def _read_centers(loss: Mapping[str, Any], name: str, heads: _Heads) -> tuple[dict[str, np.ndarray], list[str]]:
    """Returns the centers of a loss by name, and what is wrong with them, in words."""
    known = _LOSSES[name]
    centers, wrong = {}, no_place(f"{name}.{key}" for key in loss.keys() - known.keys())
    for key, size in known.items():
        if key not in loss:
            wrong.append(f"no {name}.{key}")
            continue
        count, fault = _size_of(heads, size), fault_of(loss[key])
        if fault is None and count and loss[key].size != count:
            fault = f"{loss[key].shape}, not {(1, count)}"
        if fault is None:
            centers[key] = np.asarray(loss[key], np.float32).ravel()
        else:
            wrong.append(f"{name}.{key} is {fault}")
    return centers, wrong


def _unwrap(weights: Mapping[str, Any]) -> dict[str, Any]:
    arrays = {}
    for name, array in weights.items():
        for wrapper in _WRAPPERS:
            name = name.removeprefix(wrapper)
        arrays[name] = array
    return arrays
