"""Backbones of other programs: CrOC, DINO, DINOv2, DINOv3, ResNet, ConvNeXt, from their owners, timm, Hugging Face."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from croc_jax.checkpoints.choose_network import choose_network, strip_wrappers
from croc_jax.checkpoints.description import NOTHING_KNOWN, Description, read_description, read_json
from croc_jax.checkpoints.file_kinds import IN_FOLDERS, INDEX, SAFETENSORS, identify, shorten
from croc_jax.checkpoints.infer_architecture import PretrainedBackbone, read_backbone
from croc_jax.checkpoints.param_mapping import Weights, list_problems
from croc_jax.checkpoints.torch_file import opaque, read_torch_file

_SAFETENSORS_TYPES = ("F64", "F32", "F16", "BF16", "I64", "U64", "I32", "U32", "I16", "U16", "I8", "U8", "BOOL")
# A name that a whole run in a .safetensors file has, and no other file.
_RUN_MARK = "croc_loss.center"
Colors = tuple[float, ...]


def load_pretrained(
    file: Path,
    *,
    which: str = "teacher",
    num_heads: int | None = None,
    default_heads: int | None = None,
    image_mean: Colors | None = None,
    image_std: Colors | None = None,
    image_dtype: str | None = None,
    image_range: Colors | None = None,
) -> PretrainedBackbone:
    """Reads a backbone in float32.

    Args:
        file: a file of torch.save or safetensors, whatever its name: a backbone alone, or a whole checkpoint with one
            or two of them behind any prefix; with the names of any of these libraries. Or a folder of Hugging Face, in
            one file or several, with config.json. A convolutional network gets one token for 32 x 32 pixels.
        which: "teacher" or "student" of a whole checkpoint, see `choose_network`.
        num_heads: heads of a transformer whose file does not state them; by default, heads have 64 features, or what is
            known of the size.
        default_heads: heads in place of those of 64 features, if they divide the width.
        image_mean: what images are normalized by, if the caller knows better than the files beside the weights
            (preprocessor_config.json, or timm's config.json); where nobody says, ImageNet's.
        image_std: likewise.
        image_dtype: type of the values of its images, likewise; "uint8" where nobody says.
        image_range: the values that become 0 and 1, likewise, see `PixelFormat`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a file that cannot be read, or another architecture, with names that are unknown or
            missing, and arrays of another shape; for a mean or deviation of more or fewer channels.
    """
    contents = read_contents(file)
    chosen = choose_network(contents, file, which=which)
    colors: Any = {"image_mean": image_mean, "image_std": image_std}
    images: Any = colors | {"image_dtype": image_dtype, "image_range": image_range}
    description = _read_description(file)
    description = description._replace(**{name: value for name, value in images.items() if value is not None})
    try:
        found = read_backbone(chosen.weights, description=description, num_heads=num_heads, default_heads=default_heads)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    if found.problems:
        behind = f" behind {shorten(chosen.prefix, 80)}" if chosen.prefix else ""
        raise ValueError(f"{file} is no known {found.kind}{behind}: {list_problems(found.problems)}")
    for name, value in colors.items():
        if value is not None and len(value) != found.config.channels:
            raise ValueError(
                f"{file}: {name}={value}: its images have {found.config.channels} channels, so give as many"
            )
    return found._replace(epoch=read_epoch(contents), prefix=chosen.prefix, note=chosen.note)


def is_weights_file(checkpoint: Path) -> bool:
    """Returns whether this is a file of weights, or a folder of Hugging Face, rather than a run."""
    return not checkpoint.is_dir() or _locate(checkpoint) != checkpoint


def read_contents(path: Path) -> Weights:
    """Returns what a file or folder holds by name: arrays, and whatever else a file of torch.save has.

    Raises:
        FileNotFoundError: if there is no such file, or a part of it is missing.
        ValueError: if it cannot be read, or holds no dictionary with strings as keys.
    """
    file = _locate(path)
    return _read_parts(file) if file.name.endswith(INDEX) and file.is_file() else _read_file(file)


def _read_file(file: Path) -> Weights:
    if identify(file) == SAFETENSORS:
        return _nest_run(_read_safetensors(file))
    contents = read_torch_file(file)
    if not isinstance(contents, Mapping):
        kind = shorten(type(contents).__name__, 80)
        raise ValueError(f"{file} holds a {kind}, not a dictionary of weights: save the state_dict of the model")
    return check_names(contents, file)


def check_names(contents: Mapping[Any, Any], path: Path) -> Weights:
    """Returns the contents of a file, or of a part of it; raises ValueError if keys are no strings."""
    others = [shorten(repr(name), 60) for name in contents if not isinstance(name, str)]
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
        flat |= {f"{part}.{strip_wrappers(name)}": array for name, array in arrays.items()}
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
    return next((path / name for name in IN_FOLDERS if (path / name).is_file()), path)


def _read_description(path: Path) -> Description:
    """Returns what the files beside the weights of a folder say."""
    file = _locate(path)
    return read_description(file.parent) if file.name in IN_FOLDERS else NOTHING_KNOWN


def _read_parts(index: Path) -> dict[str, Any]:
    files = read_json(index).get("weight_map")
    if not isinstance(files, dict) or not all(map(_is_file_name, files.values())):
        raise ValueError(f"{index} does not name files beside it: its weight_map is missing or damaged")
    contents: dict[str, Any] = {}
    for name in sorted(set(files.values())):
        contents |= _read_file(index.parent / name)
    return contents


def _is_file_name(name: object) -> bool:
    return isinstance(name, str) and name.isprintable() and os.path.basename(name) == name != ""


def _read_safetensors(file: Path) -> dict[str, Any]:
    try:
        with safetensors.safe_open(file, framework="numpy") as opened:
            types = {name: opened.get_slice(name).get_dtype() for name in opened.keys()}
            return {
                name: opened.get_tensor(name) if kind in _SAFETENSORS_TYPES else opaque(kind)
                for name, kind in types.items()
            }
    except safetensors.SafetensorError as error:
        reason = shorten(str(error), 200)
        raise ValueError(f"{file} is a corrupt file of safetensors ({reason}): get it again") from error
