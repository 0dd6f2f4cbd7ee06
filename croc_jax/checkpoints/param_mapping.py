"""Moves arrays between the names and layouts of PyTorch's libraries and our parameters, as tables of slots say."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from croc_jax.checkpoints.file_kinds import list_some

Params = dict[str, Any]
# What a file holds by name: arrays, and whatever else.
Weights = Mapping[str, Any]
# What programs train on top of a backbone, or beside it.
HEADS = re.compile(
    r"(head_drop|fc_norm|pooler|classifier|decoder(_\w+)?|(\w+_)?heads?|fc|proj|projector|projection|predictor|prototypes"
    r"|mask(ed)?_(token|embed)|queue\w*|center\w*)(\.(?!norm\.).*)?"
)
# Our paths of the kernels that see the pixels: of a transformer, and of a convolutional network.
PATCHES, STEM = "patch_embedding/projection/kernel", "stem/kernel"
# Types that weights come in; integers and 8-bit floats have scales that lie elsewhere.
_FLOATS = ("float16", "bfloat16", "float32", "float64")


class Slot(NamedTuple):
    """The place of one array of a file in our parameters.

    Attributes:
        path: of our parameter.
        layout: "same"; "kernel", whose outputs are our last axis and their first one; or "patches", a kernel whose
            other axes are joined in our parameter.
        part: (k, n) if the array is part k of n of our parameter along the outputs.
    """

    path: str
    layout: str = "same"
    part: tuple[int, int] | None = None


class Reading(NamedTuple):
    """What was read of a file's weights.

    Attributes:
        flat: arrays by our path, in float32.
        problems: what does not fit, in words.
        bad: our paths that the problems are about.
        first: channels, rows and columns of the filters that see the pixels; empty if there are none.
    """

    flat: dict[str, np.ndarray]
    problems: list[str]
    bad: set[str]
    first: tuple[int, ...] = ()


def read_slots(named: Iterable[tuple[str, Any]], slots: Mapping[str, Slot], ignored: re.Pattern) -> Reading:
    """Reads what can be read of weights.

    Args:
        named: names and arrays.
        slots: by name.
        ignored: names of what is no part of a backbone.
    """
    found: dict[str, dict[int, np.ndarray]] = {}
    unknown, problems, bad, first = [], [], set(), ()
    for name, array in named:
        slot = slots.get(name)
        if slot is None:
            is_weight = isinstance(array, np.ndarray) and not ignored.fullmatch(name)
            unknown += [name] if is_weight and not HEADS.fullmatch(name) else []
            continue
        index = slot.part[0] if slot.part else -1
        problem = array_problem(array, axes=4 if slot.layout == "patches" else None)
        # Networks without registers may have none of them.
        if problem is None and not array.size and slot.path != "register_tokens":
            problem = f"{array.shape}, without any value"
        if problem is None and index in found.get(slot.path, {}):
            problem = "there twice, under different prefixes or names"
        if problem is None:
            first = array.shape[1:] if slot.path in (PATCHES, STEM) else first
            found.setdefault(slot.path, {})[index] = _from_layout(np.asarray(array, np.float32), slot.layout)
        else:
            problems.append(f"{name} is {problem}")
            bad.add(slot.path)
    # DINOv3 has no bias of keys, in any block.
    no_key_bias = not any(path.endswith("qkv/bias") and 1 in parts for path, parts in found.items())
    counts = {slot.path: slot.part[1] for slot in slots.values() if slot.part}
    flat = {}
    for path, parts in found.items():
        optional = {1} if no_key_bias and path.endswith("qkv/bias") else set()
        problem = _parts_problem(path, parts, required=set(range(counts.get(path, 0))) - optional)
        if problem is None:
            flat[path] = _join(parts, counts.get(path, 0))
        elif path not in bad:
            problems.append(problem)
            bad.add(path)
    return Reading(flat, unknown_names(unknown) + problems, bad, first)


def write_slots(
    flat: Mapping[str, np.ndarray], slots: Mapping[str, Slot], *, channels: int = 3
) -> dict[str, np.ndarray]:
    """Returns arrays by the names of a library; raises ValueError listing all that have none.

    Args:
        flat: arrays by our path.
        slots: by name.
        channels: channels of the images, which a kernel of the layout "patches" does not show.
    """
    if lost := flat.keys() - {slot.path for slot in slots.values()}:
        raise ValueError(f"this format has no names for {', '.join(sorted(lost))}")
    weights = {}
    for name, (path, layout, part) in slots.items():
        if path in flat:
            array = np.split(flat[path], part[1], axis=-1)[part[0]] if part else flat[path]
            weights[name] = np.ascontiguousarray(_to_layout(array, layout, channels))
    return weights


def array_problem(array: Any, *, axes: int | None = None) -> str | None:
    """Returns why something is no array of weights, or None.

    Args:
        array: what a file has under the name of a weight.
        axes: how many it must have, if that is known.
    """
    if not isinstance(array, np.ndarray):
        return f"of type {type(array).__name__}, which is not read: save it as float32"
    if array.dtype.name not in _FLOATS:
        return f"of type {array.dtype.name}, which is no type of weights: save it as float32"
    if axes is not None and array.ndim != axes:
        return f"{array.shape}, but {axes} axes are needed"
    return None


def count_from_zero(numbers: Iterable[int]) -> int:
    """Returns how many blocks there are by their numbers; some may be missing, but not most of them.

    Examples:
        >>> count_from_zero([0, 1, 3]), count_from_zero([0, 1, 999999]), count_from_zero([])
        (4, 2, 1)
    """
    found = set(numbers)
    # One strange name does not make a million blocks.
    return 1 + max((number for number in found if number < 2 * len(found)), default=0)


def unknown_names(names: Iterable[str]) -> list[str]:
    """Returns one sentence on names that are in no table, or none."""
    listed = list_some(sorted(names))
    return [f"unknown weights {listed}"] if listed else []


def list_problems(problems: Sequence[str]) -> str:
    """Returns the first problems in a line, and how many more there are."""
    return list_some(problems, limit=450, separator="; ")


def nest(flat: Mapping[str, np.ndarray]) -> Params:
    """Returns {"a": {"b": x}} for {"a/b": x}."""
    params: Params = {}
    for path, array in flat.items():
        *folders, leaf = path.split("/")
        group = params
        for folder in folders:
            group = group.setdefault(folder, {})
        group[leaf] = array
    return params


def _from_layout(array: np.ndarray, layout: str) -> np.ndarray:
    if layout == "same":
        return array
    if array.ndim == 4:
        array = array.transpose(2, 3, 1, 0)
        return array.reshape(-1, array.shape[-1]) if layout == "patches" else array
    return array.T if array.ndim == 2 else array


def _to_layout(array: np.ndarray, layout: str, channels: int) -> np.ndarray:
    if layout == "patches":
        side = round((len(array) / channels) ** 0.5)
        array = array.reshape(side, side, channels, -1)
    if layout == "same" or array.ndim not in (2, 4):
        return array
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T


def _parts_problem(path: str, parts: Mapping[int, np.ndarray], *, required: set[int]) -> str | None:
    """Returns why the parts of a parameter do not make a whole, or None; part -1 is the whole."""
    if -1 in parts:
        return f"{path} is there twice, whole and in parts" if len(parts) > 1 else None
    if len({part.shape for part in parts.values()}) > 1:
        return f"the parts of {path} are {', '.join(str(parts[index].shape) for index in sorted(parts))}"
    if missing := required - parts.keys():
        return f"missing parts {', '.join(str(index) for index in sorted(missing))} of {path}"
    return None


def _join(parts: Mapping[int, np.ndarray], count: int) -> np.ndarray:
    """Puts parts side by side; a bias that is left out is zero."""
    if -1 in parts:
        return parts[-1]
    zeros = np.zeros_like(next(iter(parts.values())))
    return np.concatenate([parts.get(index, zeros) for index in range(count)], axis=-1)
