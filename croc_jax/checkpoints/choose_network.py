"""Finds one backbone among all that a training program has saved, by the prefix of its names."""

import collections
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from croc_jax.checkpoints.file_kinds import list_some, shorten
from croc_jax.checkpoints.param_mapping import Weights
from croc_jax.checkpoints.torch_file import Opaque

NETWORKS = ("teacher", "student")
# What PyTorch adds to the names of a module that it wraps, for several devices or a compiler.
_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# FSDP joins the parameters of a module in one, and each process saves its part of it.
_FLAT = re.compile(r"(?:.*\.)?_?flat_param(?:_\d+)?")
# The first layer of each known backbone in each library, and blocks where a file lacks that.
_FIRST_LAYERS = re.compile(
    r"(|.*\.)(patch_embed\.proj|embeddings\.patch_embeddings(\.projection)?|embedder\.embedder\.convolution"
    r"|(layer1|4)\.0\.conv1|stages\.0\.downsample_layers\.0|downsample_layers\.0\.0|stem\.0)\.weight"
)
_BLOCKS = re.compile(r"(|.*?\.)((blocks|encoder\.layer|layers?|stages|encoder\.stages)\.0\.|cls_token$).*")
_MARKS = (_FIRST_LAYERS, _BLOCKS)
# Words of prefixes, from a teacher's to a student's; without any of them, a network stands in the middle.
_WORDS: tuple[Sequence[str], ...] = (
    ("teacher",),
    ("momentum", "ema", "target", "averaged", "swa", "k"),
    (),
    ("base", "online", "q"),
    ("student",),
)
# DINOv3's copy of an earlier teacher.
_OTHERS = {"gram"}
_DEEPEST, _MOST = 8, 100


class ChosenWeights(NamedTuple):
    """The weights of one network.

    Attributes:
        weights: arrays by name, without the prefix.
        prefix: what their names begin with in the file, such as "teacher.backbone."; wrappers are left out.
        note: what was taken and what was left out, in a line; empty where the file holds nothing else.
    """

    weights: Weights
    prefix: str
    note: str


def choose_network(contents: Weights, file: Path, *, which: str) -> ChosenWeights:
    """Returns the weights of one network, out of whatever a program has put around them.

    Dictionaries inside others count as prefixes: {"teacher": {"backbone.x": ...}} holds "teacher.backbone.x".

    Args:
        contents: what a file holds by name.
        file: its name, for messages.
        which: "teacher" (or momentum encoder, moving average and the like) or "student", where there are both.

    Raises:
        ValueError: if there is no known network, only the other one, or more than one of this kind; with the prefixes
            that the file has.
    """
    if which not in NETWORKS:
        raise ValueError(f"which={which!r}: choose 'teacher' or 'student'")
    try:
        groups = dict(_walk(contents, ""))
        found = {folder + prefix: part for folder, group in groups.items() for prefix, part in _split(group).items()}
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    names = [folder + name for folder, weights in groups.items() for name in weights]
    if any(_FLAT.fullmatch(name) for name in names):
        raise ValueError(
            f"{file} holds a part of parameters that FSDP has joined (_flat_param): save a full state_dict, "
            "as DINOv2 does in eval/*/teacher_checkpoint.pth"
        )
    if not found:
        raise ValueError(f"{file} holds no known backbone: {_list_prefixes(names)}")
    prefix = _choose(found, file, which=which)
    left, note = len(names) - len(found[prefix]), ""
    if prefix or left:
        note = f"the {len(found[prefix])} arrays {f'of {prefix}' if prefix else 'without a prefix'} are read"
        backbones = list_some(sorted(other for other in found if other != prefix))
        note += f", {left} others are not{f' ({backbones} among them)' if backbones else ''}" if left else ""
    return ChosenWeights(found[prefix], prefix, shorten(note))


def strip_wrappers(name: str) -> str:
    """Returns a name without what PyTorch adds for several devices or a compiler.

    Examples:
        >>> strip_wrappers("module.blocks.0._fsdp_wrapped_module.norm1.weight")
        'blocks.0.norm1.weight'
    """
    return _WRAPPERS.sub("", name)


def _walk(contents: Mapping[Any, Any], folder: str, depth: int = 0) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the arrays of each dictionary by name, and where it lies."""
    arrays: dict[str, Any] = {}
    for name, value in contents.items():
        if not isinstance(name, str):
            continue
        if isinstance(value, Mapping) and depth < _DEEPEST:
            yield from _walk(value, strip_wrappers(f"{folder}{name}."), depth + 1)
        elif isinstance(value, np.ndarray | Opaque):
            if (plain := strip_wrappers(name)) in arrays:
                raise ValueError(f"{shorten(plain, 100)} is there twice, with and without a wrapper such as module")
            arrays[plain] = value
    if arrays:
        yield folder, arrays


def _split(weights: Weights) -> dict[str, Weights]:
    """Returns the arrays of each backbone, by what precedes known names."""
    matches = ([match[1] for name in weights if (match := pattern.fullmatch(name))] for pattern in _MARKS)
    parts: dict[str, dict[str, Any]] = {prefix: {} for prefix in next(filter(None, matches), ())}
    if len(parts) > _MOST:
        raise ValueError(f"there are {len(parts)} backbones, such as {list_some(sorted(parts))}; save one of them")
    longest_first = sorted(parts, key=len, reverse=True)
    for name, array in weights.items():
        prefix = next((prefix for prefix in longest_first if name.startswith(prefix)), None)
        if prefix is not None:
            parts[prefix][name.removeprefix(prefix)] = array
    return dict(parts)


def _choose(found: Mapping[str, Weights], file: Path, *, which: str) -> str:
    """Returns the prefix of the network that is nearest to a teacher, or to a student."""
    ranks = {prefix: _rank(prefix) for prefix in found}
    ranks = {prefix: rank for prefix, rank in ranks.items() if rank is not None} or dict.fromkeys(found, 2)
    nearest = (min if which == "teacher" else max)(ranks.values())
    chosen = [prefix for prefix, rank in ranks.items() if rank == nearest]
    if _WORDS[nearest] == (other := (NETWORKS[which == "teacher"],)):
        raise ValueError(f"{file} holds no {which!r}, only a {other[0]}: choose that ({list_some(sorted(chosen))})")
    if len(chosen) > 1:
        counts = [f"{prefix or 'no prefix'} ({len(found[prefix])} arrays)" for prefix in sorted(chosen)]
        raise ValueError(f"{file} holds several backbones, {list_some(counts)}: save the weights of one of them")
    return chosen[0]


def _rank(prefix: str) -> int | None:
    words = set(re.split(r"[^a-z]+", prefix.lower()))
    ranks = (rank for rank, known in enumerate(_WORDS) if words & set(known))
    return None if words & _OTHERS else next(ranks, 2)


def _list_prefixes(names: Sequence[str]) -> str:
    """Returns the first two parts of all names, the most frequent ones first."""
    if not names:
        return "no array lies in it"
    parts = (name.split(".") for name in names)
    counts = collections.Counter(".".join(part[: min(2, len(part) - 1)]) or part[0] for part in parts)
    listed = [f"{shorten(prefix, 80)} ({count})" for prefix, count in counts.most_common()]
    return f"its {len(names)} arrays begin with {list_some(listed, limit=300)}"
