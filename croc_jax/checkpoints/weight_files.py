"""Files and folders of weights as other programs leave them: what they hold, by name."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.numpy

from croc_jax.checkpoints.flat_run import nest_run
from croc_jax.checkpoints.torch_file import read_torch_file, unread

SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")
# In a folder as Hugging Face ships it; an index names the files that hold the parts.
HF_WEIGHTS, TORCH_WEIGHTS, HF_CONFIG = "model.safetensors", "pytorch_model.bin", "config.json"
_INDEX = ".index.json"
_IN_FOLDERS = (HF_WEIGHTS, f"{HF_WEIGHTS}{_INDEX}", TORCH_WEIGHTS, f"{TORCH_WEIGHTS}{_INDEX}")
_SAFETENSORS_TYPES = ("F64", "F32", "F16", "BF16", "I64", "U64", "I32", "U32", "I16", "U16", "I8", "U8", "BOOL")

# Where programs put the weights among other things: as trained, and their moving average.
_AS_TRAINED = ("model", "state_dict", "model_state")
_AVERAGED = ("model_ema", "state_dict_ema")
_NETWORKS = ("teacher", "student")


class ForeignWeightsError(ValueError):
    """The weights of a file fit no backbone of ours; the message says which and why."""


def is_foreign(checkpoint: Path) -> bool:
    """Returns whether this is a file, or a folder of Hugging Face, rather than a workdir of ours."""
    return checkpoint.suffix in SUFFIXES or checkpoint.name.endswith(_INDEX) or locate(checkpoint) != checkpoint


def locate(path: Path) -> Path:
    """Returns the file that holds the weights of a folder of Hugging Face, or names the files that do."""
    return next((path / name for name in _IN_FOLDERS if (path / name).is_file()), path)


def read_contents(path: Path) -> Mapping[str, Any]:
    """Returns what a file or folder holds by name: arrays, and whatever else a .pth has.

    Raises:
        FileNotFoundError: if there is no such file, or a part of it is missing.
        ForeignWeightsError: if it holds no dictionary, or one whose names are no texts.
        TorchFileError: see `read_torch_file`.
    """
    file = locate(path)
    if not file.is_file():
        raise FileNotFoundError(f"no file {file}")
    if file.name.endswith(_INDEX):
        return _read_parts(file)
    if file.suffix == ".safetensors":
        return nest_run(_read_safetensors(file))
    contents = read_torch_file(file)
    if not isinstance(contents, Mapping):
        raise ForeignWeightsError(f"{file} holds a {type(contents).__name__}, not a dictionary of weights")
    return check_names(contents, file)


def check_names(contents: Mapping[Any, Any], path: Path) -> Mapping[str, Any]:
    """Returns the same, or raises ForeignWeightsError if names are no texts.

    Args:
        contents: of a file, or of a part of it.
        path: of the file, for messages.
    """
    others = [repr(name) for name in contents if not isinstance(name, str)]
    if others:
        raise ForeignWeightsError(f"{path} names weights by {', '.join(others[:3])}, not by text: save them by name")
    return contents


def read_description(path: Path) -> dict[str, Any]:
    """Returns what a config.json beside the weights of a folder says, or nothing.

    Raises:
        ForeignWeightsError: if it cannot be read.
    """
    file = locate(path)
    config = file.parent / HF_CONFIG
    return _read_json(config) if file.name in _IN_FOLDERS and config.is_file() else {}


def choose_weights(contents: Mapping[str, Any], path: Path, *, which: str) -> Mapping[str, Any]:
    """Returns the weights of one network.

    Args:
        contents: of a file.
        path: of the file, for messages.
        which: of a whole checkpoint, "teacher" or "student"; or, where a program keeps weights
            and their moving average, "teacher" for the average. All else holds one network.

    Raises:
        ForeignWeightsError: if there is no such network, or the names of its weights are no texts.
    """
    networks = [name for name in _NETWORKS if isinstance(contents.get(name), Mapping)]
    if networks and which not in networks:
        raise ForeignWeightsError(f"{path} holds no {which!r}, only {', '.join(sorted(contents))}")
    if which not in _NETWORKS:
        raise ForeignWeightsError(f"which={which!r}: choose 'teacher' or 'student'; {path} holds one backbone")
    order = (*_AVERAGED, *_AS_TRAINED) if which == "teacher" else (*_AS_TRAINED, *_AVERAGED)
    wrapped = [name for name in (which, *order) if isinstance(contents.get(name), Mapping)]
    return choose_weights(contents[wrapped[0]], path, which=which) if wrapped else check_names(contents, path)


def read_epoch(contents: Mapping[str, Any]) -> int:
    """Returns the epoch that a file states, or 0."""
    epoch = contents.get("epoch", 0)
    return epoch if isinstance(epoch, int) else 0


def _read_parts(index: Path) -> dict[str, Any]:
    files = _read_json(index).get("weight_map")
    if not isinstance(files, dict):
        raise ForeignWeightsError(f"{index} names no files: it has no weight_map")
    contents: dict[str, Any] = {}
    for name in sorted(set(files.values())):
        contents |= read_contents(index.parent / name)
    return contents


def _read_safetensors(file: Path) -> dict[str, Any]:
    try:
        with safetensors.safe_open(file, framework="numpy") as opened:
            types = {name: opened.get_slice(name).get_dtype() for name in opened.keys()}
            return {
                name: opened.get_tensor(name) if kind in _SAFETENSORS_TYPES else unread(kind)
                for name, kind in types.items()
            }
    except safetensors.SafetensorError as error:
        raise ForeignWeightsError(f"{file} is no safetensors file: {error}") from error


def _read_json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ForeignWeightsError(f"cannot read {file} ({error})") from error
    if not isinstance(found, dict):
        raise ForeignWeightsError(f"cannot read {file}: it holds a {type(found).__name__}, not a dictionary")
    return found
