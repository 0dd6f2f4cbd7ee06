"""Backbones of other programs: weights of CrOC's and DINO's official vision transformers."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors.numpy

from croc_jax.checkpoints.convert import Params, from_official
from croc_jax.checkpoints.torch_file import read_torch_file
from croc_jax.models import BackboneConfig, make_backbone
from croc_jax.models.zoo import VARIANTS

SUFFIXES = (".pth", ".pt", ".safetensors")

# In all of CrOC's and DINO's transformers; the weights do not tell.
_HEAD_WIDTH = 64
_PREFIXES = re.compile(r"^(module\.)?(_orig_mod\.)?(backbone\.)?")


class ForeignWeightsError(ValueError):
    """The weights of a file fit no backbone of ours; the message says which and why."""


class ForeignBackbone(NamedTuple):
    """Weights and what they are for.

    Attributes:
        config: of the backbone.
        image_size: side of the square images that the position embedding was learned for.
        params: under our names.
        epoch: that the file states, or 0.
    """

    config: BackboneConfig
    image_size: int
    params: Params
    epoch: int


def load_foreign_backbone(file: Path, *, which: str = "teacher") -> ForeignBackbone:
    """Reads a backbone in float32.

    Args:
        file: a .pth file of CrOC or DINO, a whole checkpoint or a backbone alone, or a
            .safetensors file with the same names.
        which: "teacher" or "student" of a whole checkpoint; a backbone alone is what it is.

    Raises:
        FileNotFoundError: if there is no such file.
        ForeignWeightsError: for another architecture, with all names that have no place or are
            missing.
    """
    contents = _read(file)
    epoch = contents.get("epoch", 0)
    weights = contents.get(which, contents)
    if weights is contents and "student" in contents:
        raise ForeignWeightsError(f"{file} holds no {which!r}, only {', '.join(sorted(contents))}")
    arrays = {}
    for name, array in weights.items():
        place = _PREFIXES.sub("", name)
        if not place.startswith("head.") and isinstance(array, np.ndarray):
            arrays[place] = array.astype(np.float32)
    config, image_size = _infer(file, arrays)
    try:
        params = from_official({f"backbone.{name}": array for name, array in arrays.items()})
    except ValueError as error:
        raise ForeignWeightsError(f"{file} is no vision transformer of CrOC or DINO: {error}") from error
    _check_complete(file, params["backbone"], config, image_size)
    return ForeignBackbone(config, image_size, params["backbone"], epoch if isinstance(epoch, int) else 0)


def _read(file: Path) -> Mapping[str, Any]:
    if not file.is_file():
        raise FileNotFoundError(f"no file {file}")
    if file.suffix != ".safetensors":
        contents = read_torch_file(file)
        if not isinstance(contents, Mapping):
            raise ForeignWeightsError(f"{file} holds a {type(contents).__name__}, not a dictionary of weights")
        return contents
    try:
        return safetensors.numpy.load_file(file)
    except safetensors.SafetensorError as error:
        raise ForeignWeightsError(f"{file} is no safetensors file: {error}") from error


def _infer(file: Path, arrays: Mapping[str, np.ndarray]) -> tuple[BackboneConfig, int]:
    """Tells the architecture from names and shapes."""
    expected = {"cls_token": 3, "pos_embed": 3, "patch_embed.proj.weight": 4, "norm.weight": 1}
    missing = [name for name, axes in expected.items() if name not in arrays or arrays[name].ndim != axes]
    depths = {int(name.split(".")[1]) for name in arrays if re.match(r"blocks\.\d+\.", name)}
    if missing or not depths:
        lacking = ", ".join(missing or ["blocks.0"])
        raise ForeignWeightsError(f"{file} is no vision transformer of CrOC or DINO: it lacks {lacking}")
    width, _, patch_size, _ = arrays["patch_embed.proj.weight"].shape
    side = math.isqrt(arrays["pos_embed"].shape[1] - 1)
    depth, num_heads = max(depths) + 1, width // _HEAD_WIDTH
    hidden = arrays.get("blocks.0.mlp.fc1.weight", np.zeros((4 * width, width)))
    if side**2 + 1 != arrays["pos_embed"].shape[1] or width % _HEAD_WIDTH:
        raise ForeignWeightsError(
            f"{file}: {arrays['pos_embed'].shape[1]} positions of {width} features, where CrOC and DINO have "
            f"one more than a square number of them, and heads of {_HEAD_WIDTH} features"
        )
    variant = next((name for name, size in VARIANTS.items() if size == (width, depth, num_heads)), None)
    sizes = {} if variant else {"width": width, "depth": depth, "num_heads": num_heads}
    variant = {"variant": variant} if variant else {}
    return BackboneConfig(patch_size=patch_size, mlp_ratio=len(hidden) / width, **variant, **sizes), side * patch_size


def _check_complete(file: Path, params: Params, config: BackboneConfig, image_size: int) -> None:
    """Compares names and shapes with those of a start from scratch."""
    module = make_backbone(config, image_size=image_size)
    image = jax.ShapeDtypeStruct((1, image_size, image_size, 3), np.float32)
    target = jax.eval_shape(module.init, jax.random.key(0), image)["params"]
    ours, theirs = _shapes(target), _shapes(params)
    wrong = [f"no {name}" for name in sorted(ours.keys() - theirs.keys())]
    wrong += [f"{name} in excess" for name in sorted(theirs.keys() - ours.keys())]
    for name in sorted(ours.keys() & theirs.keys()):
        if ours[name] != theirs[name]:
            wrong.append(f"{name} is {theirs[name]}, not {ours[name]}")
    if wrong:
        raise ForeignWeightsError(f"{file} does not fit a transformer of its size: {'; '.join(wrong)}")


def _shapes(tree: Params) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in leaves}
