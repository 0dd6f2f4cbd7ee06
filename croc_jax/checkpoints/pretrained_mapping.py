"""Reads weights under the names of any library that the table knows, and says all that does not fit."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from croc_jax.checkpoints.vit_mapping import COLUMNS, TABLE, Row

# What files hold beside a backbone, DINOv3's norm of local crops among it.
IGNORED = re.compile(
    r"(embeddings\.)?mask_token|rope_embed\.periods|(head|head_drop|fc_norm|pooler|classifier|decoder|dino_head|ibot_head)"
    r"(\..*)?|local_cls_norm\..*|blocks\.\d+\.attn\.qkv\.bias_mask"
)
# Of whole models around a backbone.
_PREFIXES = re.compile(
    r"^(module\.|_orig_mod\.|backbone\.|dinov2\.|dinov2_with_registers\.|dinov3_vit\.|vit\.|model\.)+"
)
# Types of numbers that weights come in; whole numbers and 8-bit floats are made with scales that lie elsewhere.
_FLOATS = ("float16", "bfloat16", "float32", "float64")
_AXES = {"linear": 2, "patches": 4}


class ReadNames(NamedTuple):
    """What came of weights under foreign names.

    Attributes:
        flat: arrays by our path, in float32.
        wrong: what fits nothing, in words.
        spoiled: our paths of which `wrong` speaks.
    """

    flat: dict[str, np.ndarray]
    wrong: list[str]
    spoiled: set[str]


def collect_names(weights: Mapping[str, Any]) -> ReadNames:
    """Reads what can be read of weights under the names of any known library.

    Args:
        weights: by name; a prefix such as "module." is skipped.
    """
    named = _normalize_names(weights)
    found: dict[str, dict[int, np.ndarray]] = {}
    unknown, wrong, spoiled = [], [], set()
    for name, array in named:
        match = _find(name)
        if match is None:
            unknown += [] if IGNORED.fullmatch(name) else [name]
            continue
        place, row = match
        part = row.part[0] if row.part else -1
        fault = fault_of(array, axes=_AXES.get(row.layout))
        if fault is None and part in found.get(place, {}):
            fault = "there twice, under different prefixes or names"
        if fault is None:
            found.setdefault(place, {})[part] = _from_layout(np.asarray(array, np.float32), row.layout)
        else:
            wrong.append(f"{name} is {fault}")
            spoiled.add(place)
    # DINOv3's keys have no bias, in any block.
    whole = any(place.endswith("qkv/bias") and 1 in parts for place, parts in found.items())
    joined = {}
    for place, parts in found.items():
        fault = _fault_of_parts(place, parts, optional=() if whole else (1,))
        if fault is None:
            joined[place] = _join(place, parts)
        elif place not in spoiled:
            wrong.append(fault)
            spoiled.add(place)
    wrong += _mask_bias(dict(named), joined)
    _complete(joined)
    return ReadNames(joined, no_place(unknown) + wrong, spoiled)


def fault_of(array: Any, *, axes: int | None = None) -> str | None:
    """Returns why something is no array of weights, or None.

    Args:
        array: that a file has under the name of a weight.
        axes: that it must have, if that is known.
    """
    if not isinstance(array, np.ndarray):
        return f"of type {type(array).__name__}, which is not read: save it as float32"
    if array.dtype.name not in _FLOATS:
        return f"of type {array.dtype.name}, which is no type of weights: save it as float32"
    if axes is not None and array.ndim != axes:
        return f"{array.shape}, where {axes} axes are needed"
    return None


def no_place(names: Iterable[str]) -> list[str]:
    """Returns one sentence on names that no table has, or none."""
    listed = ", ".join(sorted(names))
    return [f"no place for the weights {listed}"] if listed else []


def their_names(weights: Iterable[str]) -> Callable[[str], str]:
    """Returns what says how the library of these weights calls a path of ours; "" where it has no name for it."""
    known = {_PREFIXES.sub("", name) for name in weights}

    def count(form: str) -> int:
        generic = {row.names[form] for row in TABLE if form in row.names}
        return sum(re.sub(r"\.\d+\.", ".{i}.", name, count=1) in generic for name in known)

    form = max(COLUMNS, key=count)

    def name_of(place: str) -> str:
        block = re.match(r"block_(\d+)/", place)
        generic = re.sub(r"^block_\d+/", "block_{i}/", place)
        names = [row.names[form] for row in TABLE if row.ours == generic and form in row.names]
        return ", ".join(name.replace("{i}", block[1] if block else "") for name in names)

    return name_of


def _normalize_names(weights: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Returns arrays with names as the table has them; what is no array, but a plain value, is left out."""
    named = [
        (_PREFIXES.sub("", name), array)
        for name, array in weights.items()
        if not isinstance(array, bool | int | float | str | None)
    ]
    gated = any(name.endswith("mlp.gate_proj.weight") for name, _ in named)
    renamed = []
    for name, array in named:
        # The newest Hugging Face names of blocks, and DINOv2's in chunks of blocks.
        name = re.sub(r"^layers?\.(\d+)\.", r"layer.\1.", name)
        name = re.sub(r"^layer\.(\d+)\.(layernorm_|mlp\.fc)", r"encoder.layer.\1.\2", name)
        name = re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", name)
        # One name for two things: the first matrix, or the half of it that the other one gates.
        name = name.replace("mlp.up_proj", "mlp.gated_up_proj") if gated else name
        renamed.append((name, array))
    return renamed


def _matchers() -> list[tuple[Callable[[str], re.Match | None], Row]]:
    matchers = []
    for row in TABLE:
        for name in dict.fromkeys((*row.names.values(), *row.aliases)):
            pattern = re.escape(name).replace(r"\{i\}", r"(\d+)")
            matchers.append((re.compile(pattern).fullmatch, row))
    return matchers


_MATCHERS = _matchers()


def _find(name: str) -> tuple[str, Row] | None:
    for fullmatch, row in _MATCHERS:
        if match := fullmatch(name):
            return row.ours.replace("{i}", match[1]) if match.groups() else row.ours, row
    return None


def _from_layout(array: np.ndarray, layout: str) -> np.ndarray:
    if layout == "linear":
        return array.T
    if layout == "patches":
        return array.transpose(2, 3, 1, 0).reshape(-1, array.shape[0])
    return array


def _fault_of_parts(place: str, parts: Mapping[int, np.ndarray], *, optional: tuple[int, ...]) -> str | None:
    """Returns why the parts of an array of ours do not make a whole, or None.

    Args:
        place: the path of ours.
        parts: by their number; -1 is the whole.
        optional: parts that a bias of queries, keys and values may lack.
    """
    count = _count_parts(place)
    if -1 in parts:
        return f"{place} is there twice, whole and in parts" if len(parts) > 1 else None
    if len({part.shape for part in parts.values()}) > 1:
        return f"the parts of {place} are {', '.join(str(parts[index].shape) for index in sorted(parts))}"
    optional = optional if place.endswith("qkv/bias") else ()
    if set(range(count)) - set(optional) - parts.keys():
        return f"only {len(parts)} of the {count} parts of {place}"
    return None


def _join(place: str, parts: Mapping[int, np.ndarray]) -> np.ndarray:
    """Puts parts side by side; a bias that is left out, as that of DINOv3's keys, is zero."""
    if -1 in parts:
        return parts[-1]
    nothing = np.zeros_like(next(iter(parts.values())))
    return np.concatenate([parts.get(index, nothing) for index in range(_count_parts(place))], axis=-1)


def _count_parts(place: str) -> int:
    return 3 if "qkv" in place else 2


def _mask_bias(named: Mapping[str, Any], joined: dict[str, np.ndarray]) -> list[str]:
    """DINOv3's own files multiply the bias of queries, keys and values by a mask of ones and zeros."""
    wrong = []
    for name, mask in named.items():
        if match := re.fullmatch(r"blocks\.(\d+)\.attn\.qkv\.bias_mask", name):
            bias = joined.get(place := f"block_{match[1]}/attention/qkv/bias")
            if bias is not None and np.shape(mask) == bias.shape:
                joined[place] = bias * np.nan_to_num(np.asarray(mask, np.float32), nan=0.0)
            elif bias is not None:
                wrong.append(f"{name} is {np.shape(mask)}, not {bias.shape}")
    return wrong


def _complete(joined: dict[str, np.ndarray]) -> None:
    """Fills in what some files leave out because it is nothing: biases, and the place of [CLS]."""
    if not any(place.endswith("attention/qkv/bias") for place in joined):
        kernels = {place: kernel for place, kernel in joined.items() if place.endswith("attention/qkv/kernel")}
        for place, kernel in kernels.items():
            joined[place.removesuffix("kernel") + "bias"] = np.zeros(kernel.shape[-1], np.float32)
    embedding = joined.get("position_embedding")
    if embedding is not None and embedding.ndim == 3 and round(embedding.shape[1] ** 0.5) ** 2 == embedding.shape[1]:
        joined["position_embedding"] = np.concatenate([np.zeros_like(embedding[:, :1]), embedding], axis=1)
    registers = joined.get("register_tokens")
    if registers is not None and not registers.size:
        del joined["register_tokens"]
