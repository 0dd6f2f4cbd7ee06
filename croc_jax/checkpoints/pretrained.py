"""Backbones of other programs: CrOC, DINO, DINOv2, DINOv3, ResNet, ConvNeXt, from their owners, timm, Hugging Face."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from croc_jax.checkpoints.infer_architecture import PretrainedBackbone, read_backbone
from croc_jax.checkpoints.param_mapping import Weights
from croc_jax.checkpoints.torch_file import opaque, read_torch_file

_SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")
# Files of a folder as Hugging Face ships it; an index names the files that hold the parts.
HF_WEIGHTS, HF_CONFIG = "model.safetensors", "config.json"
_TORCH_WEIGHTS, _INDEX = "pytorch_model.bin", ".index.json"
_IN_FOLDERS = (HF_WEIGHTS, f"{HF_WEIGHTS}{_INDEX}", _TORCH_WEIGHTS, f"{_TORCH_WEIGHTS}{_INDEX}")
_SAFETENSORS_TYPES = ("F64", "F32", "F16", "BF16", "I64", "U64", "I32", "U32", "I16", "U16", "I8", "U8", "BOOL")

# Where programs put the weights among other things: as trained, and their moving average.
_AS_TRAINED = ("model", "state_dict", "model_state")
_AVERAGED = ("model_ema", "state_dict_ema")
_NETWORKS = ("teacher", "student")
# A name that a whole run in a .safetensors file has, and no other file.
_RUN_MARK = "croc_loss.center"


def load_pretrained(
    file: Path, *, which: str = "teacher", num_heads: int | None = None, default_heads: int | None = None
) -> PretrainedBackbone:
    """Reads a backbone in float32.

    Args:
        file: a .pth, .bin or .safetensors file, a whole checkpoint of CrOC or DINO or a backbone alone, also inside
            "model", "state_dict" and the like; with the names of any of these libraries. Or a folder of Hugging Face,
            in one file or several, with config.json. A convolutional network gets one token for 32 x 32 pixels.
        which: "teacher" or "student" of a whole checkpoint; where weights lie beside their moving average, "teacher"
            is the average. Other files hold one backbone.
        num_heads: heads of a transformer whose file does not state them; by default, heads have 64 features, or what is
            known of the size.
        default_heads: heads in place of those of 64 features, if they divide the width.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a file that cannot be read, or another architecture, with all names that are unknown or
            missing, and all arrays of another shape.
    """
    contents = read_contents(file)
    weights = _choose_weights(contents, file, which=which)
    found = read_backbone(
        weights, description=_read_description(file), num_heads=num_heads, default_heads=default_heads
    )
    if found.problems:
        raise ValueError(f"{file} is no known {found.kind}: {'; '.join(found.problems)}")
    return found._replace(epoch=read_epoch(contents))


def is_weights_file(checkpoint: Path) -> bool:
    """Returns whether this is a file of weights, or a folder of Hugging Face, rather than a workdir."""
    return checkpoint.suffix in _SUFFIXES or checkpoint.name.endswith(_INDEX) or _locate(checkpoint) != checkpoint


def read_contents(path: Path) -> Weights:
    """Returns what a file or folder holds by name: arrays, and whatever else a .pth has.

    Raises:
        FileNotFoundError: if there is no such file, or a part of it is missing.
        ValueError: if it cannot be read, or holds no dictionary with strings as keys.
    """
    file = _locate(path)
    if not file.is_file():
        raise FileNotFoundError(f"no file {file}")
    if file.name.endswith(_INDEX):
        return _read_parts(file)
    if file.suffix == ".safetensors":
        return _nest_run(_read_safetensors(file))
    contents = read_torch_file(file)
    if not isinstance(contents, Mapping):
        raise ValueError(f"{file} holds a {type(contents).__name__}, not a dictionary of weights")
    return check_names(contents, file)


def check_names(contents: Mapping[Any, Any], path: Path) -> Weights:
    """Returns the contents of a file, or of a part of it; raises ValueError if keys are no strings."""
    others = [repr(name) for name in contents if not isinstance(name, str)]
    if others:
        raise ValueError(f"{path} has keys that are no strings, such as {', '.join(others[:3])}: save weights by name")
    return contents


def read_epoch(contents: Weights) -> int:
    """Returns the epoch that a file states, or 0."""
    epoch = contents.get("epoch", 0)
    return epoch if isinstance(epoch, int) else 0


def flatten_run(contents: Weights) -> dict[str, np.ndarray]:
    """Returns {"student.backbone.cls_token": x, ...} for {"student": {"module.backbone.cls_token": x}, ...}."""
    flat = {}
    for part, value in contents.items():
        arrays = value if isinstance(value, Mapping) else {}
        flat |= {f"{part}.{name.removeprefix('module.')}": array for name, array in arrays.items()}
    return flat | {"epoch": np.asarray(contents["epoch"], np.int64)}


def _nest_run(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Returns the inverse of `flatten_run`, without the wrapper "module"; arrays of other files as they are."""
    if _RUN_MARK not in arrays:
        return dict(arrays)
    contents: dict[str, Any] = {}
    for name, array in arrays.items():
        part, _, inner = name.partition(".")
        if inner:
            contents.setdefault(part, {})[inner] = array
    epoch = arrays.get("epoch")
    if isinstance(epoch, np.ndarray) and epoch.size == 1 and epoch.dtype.kind in "iu":
        contents["epoch"] = int(epoch.item())
    return contents


def _locate(path: Path) -> Path:
    """Returns the file that holds the weights of a folder of Hugging Face, or names the files that do."""
    return next((path / name for name in _IN_FOLDERS if (path / name).is_file()), path)


def _read_description(path: Path) -> dict[str, Any]:
    """Returns the config.json beside the weights of a folder, or nothing."""
    file = _locate(path)
    config = file.parent / HF_CONFIG
    return _read_json(config) if file.name in _IN_FOLDERS and config.is_file() else {}


def _choose_weights(contents: Weights, path: Path, *, which: str) -> Weights:
    """Returns the weights of one network, out of whatever a program has put around them."""
    networks = [name for name in _NETWORKS if isinstance(contents.get(name), Mapping)]
    if networks and which not in networks:
        raise ValueError(f"{path} holds no {which!r}, only {', '.join(sorted(contents))}")
    if which not in _NETWORKS:
        raise ValueError(f"which={which!r}: choose 'teacher' or 'student'; {path} holds one backbone")
    order = (*_AVERAGED, *_AS_TRAINED) if which == "teacher" else (*_AS_TRAINED, *_AVERAGED)
    wrapped = [name for name in (which, *order) if isinstance(contents.get(name), Mapping)]
    return _choose_weights(contents[wrapped[0]], path, which=which) if wrapped else check_names(contents, path)


def _read_parts(index: Path) -> dict[str, Any]:
    files = _read_json(index).get("weight_map")
    if not isinstance(files, dict):
        raise ValueError(f"{index} names no files: it has no weight_map")
    contents: dict[str, Any] = {}
    for name in sorted(set(files.values())):
        contents |= read_contents(index.parent / name)
    return contents


def _read_safetensors(file: Path) -> dict[str, Any]:
    try:
        with safetensors.safe_open(file, framework="numpy") as opened:
            types = {name: opened.get_slice(name).get_dtype() for name in opened.keys()}
            return {
                name: opened.get_tensor(name) if kind in _SAFETENSORS_TYPES else opaque(kind)
                for name, kind in types.items()
            }
    except safetensors.SafetensorError as error:
        raise ValueError(f"{file} is no safetensors file: {error}") from error


def _read_json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"cannot read {file} ({error})") from error
    if not isinstance(found, dict):
        raise ValueError(f"cannot read {file}: it holds a {type(found).__name__}, not a dictionary")
    return found
