"""Whole checkpoints of the official code of CrOC, in and out, and of DINO, in: both networks, heads and centers."""

import functools
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from croc_jax.checkpoints.choose_network import NETWORKS, strip_wrappers
from croc_jax.checkpoints.export import name_arrays, write_arrays
from croc_jax.checkpoints.infer_architecture import compare_shapes, read_backbone, shapes_of
from croc_jax.checkpoints.manifest import flatten_tree
from croc_jax.checkpoints.param_mapping import Params, Weights, array_problem, list_problems, nest, unknown_names
from croc_jax.checkpoints.pretrained import check_names, flatten_run, is_weights_file, read_contents, read_epoch
from croc_jax.checkpoints.restore import restore_networks
from croc_jax.models import BackboneConfig, HeadConfig, make_head
from croc_jax.paths import local_path

# Of each official loss, its centers and the last layers that they belong to.
_LOSSES = {
    "croc_loss": {"center": "last_layer", "center_c": "last_layer_dense"},
    "dino_loss": {"center": "last_layer"},
}
# Each official name of a head, and our path; kernels are transposed.
_HEAD = {
    **{
        f"mlp.{2 * index}.{theirs}": f"mlp_{index + 1}/{ours}"
        for index in range(3)
        for theirs, ours in (("weight", "kernel"), ("bias", "bias"))
    },
    "last_layer.weight_g": "last_layer/scale",
    "last_layer.weight_v": "last_layer/direction",
    "last_layer_c.weight_g": "last_layer_dense/scale",
    "last_layer_c.weight_v": "last_layer_dense/direction",
}


# What masked patches need: in the head, and beside it.
MASKED_LAYER, MASK_TOKEN = "last_layer_masked", "mask_token"


class Networks(NamedTuple):
    """What a run has learned.

    Attributes:
        config: settings of the backbone.
        image_size: side of the images that the position embedding was learned for.
        student: parameters {"backbone": ..., "head": ...}.
        teacher: parameters {"backbone": ..., "head": ...}.
        center: center of the teacher's [CLS] logits.
        center_dense: center of its centroid logits; None for DINO, whose heads have no last layer for centroids.
        epoch: epoch that the file states, or the step of a run of this package.
        guessed: see `PretrainedBackbone`; empty for a run of this package.
        center_masked: center of the teacher's logits of patches, of a run of this package that masks patches.
    """

    config: BackboneConfig
    image_size: int
    student: Params
    teacher: Params
    center: np.ndarray
    center_dense: np.ndarray | None
    epoch: int
    guessed: dict[str, Any]
    center_masked: np.ndarray | None = None

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns all arrays by path that the official code has a place for."""
        tree = {"student": without_masks(self.student), "teacher": without_masks(self.teacher)}
        return flatten_tree({**tree, "center": self.center, "center_dense": self.center_dense})


def without_masks(params: Params) -> Params:
    """Leaves out what masked patches need: their last layer and the mask token."""
    head = {name: layer for name, layer in params["head"].items() if name != MASKED_LAYER}
    return {name: part for name, part in params.items() if name != MASK_TOKEN} | {"head": head}


def load_networks(source: Path, *, num_heads: int | None = None, default_heads: int | None = None) -> Networks:
    """Reads the networks of a run of this package, or of the official code of CrOC or DINO.

    Args:
        source: a workdir, a checkpoint of one; or checkpoint.pth, as main_croc.py and main_dino.py write it.
        num_heads: see `load_pretrained`.
        default_heads: see `load_pretrained`.

    Raises:
        CheckpointError: if there is no checkpoint of this package that can be used.
        FileNotFoundError: if there is no such file.
        ValueError: for another kind of file; or listing every weight of student, teacher and centers that is unknown,
            missing or of another shape; or if the number of heads is given for a run of this package.
    """
    source = local_path(source, name="checkpoint")
    if is_weights_file(source):
        return _load_official(source, num_heads=num_heads, default_heads=default_heads)
    if num_heads is not None:
        raise ValueError(f"num_heads={num_heads}: {source} is a run, whose settings are known; leave it out")
    recipe, state, step = restore_networks(source)
    centers = np.asarray(state["center"]), np.asarray(state["center_dense"])
    size = recipe.backbone.embedded_size(recipe.data.views.crop_size)
    networks = Networks(recipe.backbone, size, state["student"], state["teacher"], *centers, step, {})
    return networks._replace(center_masked=np.asarray(state["center_masked"])) if "center_masked" in state else networks


def export_run(workdir: Path, file: Path) -> Path:
    """Writes a run as the official code's checkpoint.pth, without its optimizer; returns the file.

    Args:
        workdir: folder of the run, or one checkpoint of it.
        file: a .pth file; or a .safetensors file, which only this package reads.

    Raises:
        CheckpointError: if there is no checkpoint that can be used.
        ValueError: for another kind of file, where PyTorch is not installed, or for a run of DINO.
    """
    networks = load_networks(workdir)
    if networks.center_dense is None:
        raise ValueError(f"{workdir} is a run of DINO: it has no head for centroids, which the official code needs")
    contents = {
        # The official student is wrapped for several devices.
        "student": {f"module.{name}": array for name, array in to_official(networks.student, networks.config).items()},
        "teacher": to_official(networks.teacher, networks.config),
        "croc_loss": {"center": networks.center[None], "center_c": networks.center_dense[None]},
        "epoch": networks.epoch,
    }
    write_arrays(flatten_run(contents) if file.suffix == ".safetensors" else contents, file)
    return file


def to_official(params: Params, config: BackboneConfig) -> dict[str, np.ndarray]:
    """Returns arrays under official names; the official code has none for what masked patches need.

    Args:
        params: {"backbone": ..., "head": ...} or one of them.
        config: settings of the backbone.

    Raises:
        ValueError: if no official module has the architecture, or listing every parameter without an official name.
    """
    weights = {}
    if "backbone" in params:
        named = name_arrays(params["backbone"], config, "official")
        weights = {f"backbone.{name}": array for name, array in named.items()}
    if "head" in params:
        names = {ours: theirs for theirs, ours in _HEAD.items()}
        flat = flatten_tree(without_masks(params)["head"])
        weights |= {f"head.{names[path]}": np.ascontiguousarray(_turn(path, array)) for path, array in flat.items()}
    return weights


def split_official(weights: Weights) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Returns the backbone's weights and the head's, both without that prefix and wrappers, and unknown names."""
    parts, unknown = {"backbone": {}, "head": {}}, []
    for name, array in weights.items():
        part, _, inner = strip_wrappers(name).partition(".")
        if part in parts and inner:
            parts[part][inner] = array
        else:
            unknown.append(strip_wrappers(name))
    return parts["backbone"], parts["head"], unknown


def read_head(weights: Weights, *, width: int, layers: Collection[str]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Returns arrays of a head by our path, and what is unknown, missing, unexpected or of another shape.

    Args:
        weights: arrays under official names without "head.".
        width: features of the tokens that it takes.
        layers: last layers that the head has.
    """
    names = {name: path for name, path in _HEAD.items() if "last" not in path or path.split("/")[0] in layers}
    problems = unknown_names(f"head.{name}" for name in weights.keys() - names.keys())
    problems += [f"missing head.{name}" for name in names if name not in weights]
    for name in names.keys() & weights.keys():
        if problem := array_problem(weights[name], axes=1 if name.endswith("bias") else 2):
            problems.append(f"head.{name} is {problem}")
    if problems:
        return {}, problems
    flat = {path: _turn(path, np.asarray(weights[name], np.float32)) for name, path in names.items()}
    hidden, bottleneck = flat["mlp_1/kernel"].shape[-1], flat["mlp_3/kernel"].shape[-1]
    sizes: Any = {f"num_prototypes{end}": len(flat[f"last_layer{end}/scale"]) for end in ("", "_dense")[: len(layers)]}
    config = HeadConfig(hidden_dim=hidden, bottleneck_dim=bottleneck, **sizes)
    shapes = _head_shapes(config, width)
    return flat, compare_shapes(flat, {path: shape for path, shape in shapes.items() if path in names.values()})


@functools.lru_cache(maxsize=8)
def _head_shapes(config: HeadConfig, width: int) -> dict[str, tuple[int, ...]]:
    head, token = make_head(config, dtype=np.float32), jax.ShapeDtypeStruct((1, width), np.float32)
    return shapes_of(jax.eval_shape(head.init, jax.random.key(0), token)["params"])


def _turn(path: str, array: np.ndarray) -> np.ndarray:
    return np.asarray(array).T if path.endswith("/kernel") else np.asarray(array)


def _load_official(file: Path, *, num_heads: int | None, default_heads: int | None) -> Networks:
    contents = read_contents(file)
    loss = next((name for name in _LOSSES if isinstance(contents.get(name), Mapping)), None)
    missing = [name for name in NETWORKS if not isinstance(contents.get(name), Mapping)]
    if missing or loss is None:
        lost = ", ".join([*missing, *([] if loss else [" or ".join(_LOSSES)])])
        raise ValueError(f"{file} is no whole checkpoint of CrOC or DINO: it lacks {lost}")
    backbones, heads, problems = {}, {}, []
    # The architecture is inferred from the teacher, which comes first; the student must have the same.
    for which in NETWORKS:
        backbone, head, unknown = split_official(check_names(contents[which], file))
        found = read_backbone(backbone, num_heads=num_heads, default_heads=default_heads, like=backbones.get("teacher"))
        flat, wrong = read_head(head, width=found.width, layers=_LOSSES[loss].values())
        backbones[which], heads[which] = found, flat
        problems += [f"{which}: {problem}" for problem in unknown_names(unknown) + wrong]
        problems += [f"{which}.backbone: {problem}" for problem in found.problems]
    if all(heads.values()):
        found = compare_shapes(heads["student"], shapes_of(heads["teacher"]))
        problems += [f"student.head, unlike the teacher's: {problem}" for problem in found]
    centers, wrong = _read_centers(contents[loss], loss, heads["teacher"])
    if problems := problems + wrong:
        raise ValueError(f"{file} is no known whole checkpoint of CrOC or DINO: {list_problems(problems)}")
    student, teacher = (
        {"backbone": backbones[which].params, "head": nest(heads[which])} for which in ("student", "teacher")
    )
    config, size, _, guessed, *_ = backbones["teacher"]
    epoch = read_epoch(contents)
    return Networks(config, size, student, teacher, centers["center"], centers.get("center_c"), epoch, guessed)


def _read_centers(loss: Weights, name: str, head: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Returns the centers of a loss by name, and what is wrong with them."""
    known = _LOSSES[name]
    centers, problems = {}, unknown_names(f"{name}.{key}" for key in loss.keys() - known.keys())
    problems += [f"missing {name}.{key}" for key in known if key not in loss]
    for key in known.keys() & loss.keys():
        expected = (1, len(head[f"{known[key]}/scale"])) if head else np.shape(loss[key])
        problem = array_problem(loss[key])
        if problem is None and loss[key].shape != expected:
            problem = f"{loss[key].shape}, expected {expected}"
        if problem is None:
            centers[key] = np.asarray(loss[key], np.float32).ravel()
        else:
            problems.append(f"{name}.{key} is {problem}")
    return centers, problems
