"""Backbones of other programs: CrOC, DINO, DINOv2, DINOv3, ResNet, ConvNeXt, from their owners, timm, Hugging Face."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors.numpy

from croc_jax.checkpoints.convolutional_names import detect, read_convolutional
from croc_jax.checkpoints.flat_run import nest_run
from croc_jax.checkpoints.names import Params, WeightNamesError, flatten, is_gated, read_names
from croc_jax.checkpoints.torch_file import read_torch_file
from croc_jax.models import BackboneConfig, make_backbone
from croc_jax.models.zoo import CONVOLUTIONAL, VARIANTS

SUFFIXES = (".pth", ".pt", ".safetensors")
# In a folder as Hugging Face ships it.
HF_WEIGHTS, HF_CONFIG = "model.safetensors", "config.json"

# In all of these transformers but one; the weights do not tell, but a config.json does.
_HEAD_WIDTH = 64
_NEEDED = (
    "cls_token",
    "patch_embedding/projection/kernel",
    "norm/scale",
    "block_0/mlp_1/bias",
    "block_0/mlp_2/kernel",
)
# Of convolutional networks as they were trained.
_CONVOLUTIONAL_STRIDE, _CONVOLUTIONAL_SIZE = 32, 224
# Of a model without a learned position embedding.
_ROPE_GRID = 14


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


def is_foreign(checkpoint: Path) -> bool:
    """Returns whether this is a file, or a folder of Hugging Face, rather than a workdir of ours."""
    return checkpoint.suffix in SUFFIXES or (checkpoint / HF_WEIGHTS).is_file()


def load_foreign_backbone(file: Path, *, which: str = "teacher") -> ForeignBackbone:
    """Reads a backbone in float32.

    Args:
        file: a .pth file, a whole checkpoint of CrOC or DINO or a backbone alone; a .safetensors
            file with the names of any of these libraries; or a folder with model.safetensors and
            config.json. A convolutional network gets one token for 32 x 32 pixels.
        which: "teacher" or "student" of a whole checkpoint; a backbone alone is what it is.

    Raises:
        FileNotFoundError: if there is no such file.
        ForeignWeightsError: for another architecture, with all names that have no place or are
            missing.
    """
    file = file / HF_WEIGHTS if file.is_dir() else file
    contents = read_contents(file)
    epoch, weights = contents.get("epoch", 0), contents.get(which, contents)
    if weights is contents and "student" in contents:
        raise ForeignWeightsError(f"{file} holds no {which!r}, only {', '.join(sorted(contents))}")
    arrays = {name: array for name, array in weights.items() if isinstance(array, np.ndarray)}
    # timm's ConvNeXt has its last norm in the head.
    arrays = {
        name: np.asarray(array, np.float32)
        for name, array in arrays.items()
        if ".head." not in f".{name}" or ".head.norm." in f".{name}"
    }
    if (known := detect(arrays)) is not None:
        config, image_size, params = _read_convolutional(file, arrays, family=known[0])
    else:
        try:
            params = read_names(arrays)
        except WeightNamesError as error:
            raise ForeignWeightsError(f"{file} is no vision transformer that we know: {error}") from error
        config, image_size = _infer(file, flatten(params), arrays)
    _check_complete(file, params, config, image_size)
    return ForeignBackbone(config, image_size, params, epoch if isinstance(epoch, int) else 0)


def _read_convolutional(
    file: Path, arrays: Mapping[str, np.ndarray], *, family: str
) -> tuple[BackboneConfig, int, Params]:
    try:
        params, _, stages = read_convolutional(arrays)
    except WeightNamesError as error:
        raise ForeignWeightsError(f"{file} is no {family} that we know: {error}") from error
    last = params["stage_3_block_0"]
    width = len(last["norm_3"]["scale"]) if family == "resnet" else len(last["scale"])
    names = [name for name in CONVOLUTIONAL if name.startswith(family)]
    variant = next((name for name in names if CONVOLUTIONAL[name] == (width, stages)), None)
    sizes: Any = {"variant": names[0], "width": width, "stages": stages} if variant is None else {"variant": variant}
    return BackboneConfig(patch_size=_CONVOLUTIONAL_STRIDE, **sizes), _CONVOLUTIONAL_SIZE, params


def read_contents(file: Path) -> Mapping[str, Any]:
    """Returns what a file holds by name: arrays, and whatever else a .pth has.

    Raises:
        FileNotFoundError: if there is no such file.
        ForeignWeightsError: if it holds no dictionary.
        TorchFileError: see `read_torch_file`.
    """
    if not file.is_file():
        raise FileNotFoundError(f"no file {file}")
    if file.suffix != ".safetensors":
        contents = read_torch_file(file)
        if not isinstance(contents, Mapping):
            raise ForeignWeightsError(f"{file} holds a {type(contents).__name__}, not a dictionary of weights")
        return contents
    try:
        return nest_run(safetensors.numpy.load_file(file))
    except safetensors.SafetensorError as error:
        raise ForeignWeightsError(f"{file} is no safetensors file: {error}") from error


def _infer(file: Path, flat: dict[str, np.ndarray], names: Mapping[str, Any]) -> tuple[BackboneConfig, int]:
    """Tells the architecture from shapes, and from what the library calls its weights."""
    expected = (
        "cls_token",
        "patch_embedding/projection/kernel",
        "norm/scale",
        "block_0/mlp_1/bias",
        "block_0/mlp_2/kernel",
    )
    if missing := [name for name in expected if name not in flat]:
        raise ForeignWeightsError(f"{file} is no vision transformer that we know: it lacks {', '.join(missing)}")
    stated = _stated(file)
    width, depth = (
        flat["cls_token"].shape[-1],
        1 + max(int(n[6 : n.index("/")]) for n in flat if n.startswith("block_")),
    )
    patch_size = round((len(flat["patch_embedding/projection/kernel"]) / 3) ** 0.5)
    if width % _HEAD_WIDTH and "num_attention_heads" not in stated:
        raise ForeignWeightsError(f"{file}: {width} features, where these transformers have heads of {_HEAD_WIDTH}")
    # DINOv2's gates are SiLU whatever its config says.
    gate = stated.get("hidden_act", "silu") if stated.get("model_type") == "dinov3_vit" else "silu"
    if is_gated(flat) and gate != "silu":
        raise ForeignWeightsError(f"{file}: hidden_act={gate!r} gates the MLPs; only silu is known")
    num_heads = stated.get("num_attention_heads", width // _HEAD_WIDTH)
    rope = "position_embedding" not in flat
    count = _ROPE_GRID**2 + 1 if rope else flat["position_embedding"].shape[1]
    side = round((count - 1) ** 0.5)
    if side**2 + 1 != count:
        raise ForeignWeightsError(
            f"{file}: {count} positions of {width} features, where one more than a square number is needed"
        )
    variant = next((name for name, size in VARIANTS.items() if size == (width, depth, num_heads)), None)
    sizes: Any = {"width": width, "depth": depth, "num_heads": num_heads} if variant is None else {"variant": variant}
    config = BackboneConfig(
        patch_size=patch_size,
        mlp_ratio=flat["block_0/mlp_2/kernel"].shape[0] / width,
        num_registers=flat["register_tokens"].shape[1] if "register_tokens" in flat else 0,
        layer_scale="block_0/scale_1" in flat,
        mlp="swiglu" if is_gated(flat) else "gelu",
        positions="rope" if rope else "learned",
        position_resizing=_resizing(names),
        norm_epsilon=stated.get("layer_norm_eps", 1e-5 if rope else 1e-6),
        **sizes,
    )
    return config, side * patch_size


def _stated(file: Path) -> dict[str, Any]:
    """Returns what a config.json beside the weights says."""
    config = file.parent / HF_CONFIG
    if file.name != HF_WEIGHTS or not config.is_file():
        return {}
    try:
        return json.loads(config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ForeignWeightsError(f"cannot read {config} ({error})") from error


def _resizing(names: Mapping[str, Any]) -> str:
    """Tells how the library that ships these weights resizes a position embedding."""
    has_registers = any(re.search(r"(reg|register|storage)_tokens?$", name) for name in names)
    if has_registers:
        return "antialias"
    if any("embeddings." in name for name in names):
        return "plain"
    # DINOv2's own files have a mask token, which timm drops.
    of_timm = any(name.endswith("ls1.gamma") for name in names) and not any("mask_token" in name for name in names)
    return "antialias" if of_timm else "offset"


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
        raise ForeignWeightsError(f"{file} does not fit a backbone of its size: {'; '.join(wrong)}")


def _shapes(tree: Params) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in leaves}
