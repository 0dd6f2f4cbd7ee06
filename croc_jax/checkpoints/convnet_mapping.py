"""Names of the weights of ResNet and ConvNeXt in PyTorch's libraries, and ours: both ways."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from croc_jax.checkpoints.pretrained_mapping import ReadNames, fault_of, no_place
from croc_jax.checkpoints.vit_mapping import Params, flatten

# Ours, and what stands for it where the format's name has {s} (stage) and {i} (block of the stage). A place
# in parentheses is a normalization by batches, one in brackets a scale; the rest has kernels (and biases).
_RESNET = {
    "official": {
        "stem": "conv1",
        "(norm)": "bn1",
        **{f"stage_{{s}}_block_{{i}}/conv_{n}": f"layer{{S}}.{{i}}.conv{n}" for n in (1, 2, 3)},
        **{f"(stage_{{s}}_block_{{i}}/norm_{n})": f"layer{{S}}.{{i}}.bn{n}" for n in (1, 2, 3)},
        "stage_{s}_block_0/shortcut": "layer{S}.0.downsample.0",
        "(stage_{s}_block_0/norm_shortcut)": "layer{S}.0.downsample.1",
    },
    "hf": {
        "stem": "embedder.embedder.convolution",
        "(norm)": "embedder.embedder.normalization",
        **{
            f"stage_{{s}}_block_{{i}}/conv_{n}": f"encoder.stages.{{s}}.layers.{{i}}.layer.{n - 1}.convolution"
            for n in (1, 2, 3)
        },
        **{
            f"(stage_{{s}}_block_{{i}}/norm_{n})": f"encoder.stages.{{s}}.layers.{{i}}.layer.{n - 1}.normalization"
            for n in (1, 2, 3)
        },
        "stage_{s}_block_0/shortcut": "encoder.stages.{s}.layers.0.shortcut.convolution",
        "(stage_{s}_block_0/norm_shortcut)": "encoder.stages.{s}.layers.0.shortcut.normalization",
    },
}
_RESNET["timm"] = _RESNET["official"]


def _convnext(stem: str, down: str, block: str, inside: Sequence[str], norm: str) -> dict[str, str]:
    """Returns a table from what a library calls the parts.

    Args:
        stem: convolution and norm, with {n} for 0 and 1.
        down: alike, before stage {s}.
        block: number {i} of stage {s}.
        inside: a block's depthwise convolution, norm, two matrices, and scale.
        norm: the last one.
    """
    ours = ("depthwise", "norm", "mlp_1", "mlp_2")
    return {
        "stem": stem.replace("{n}", "0"),
        "stem_norm": stem.replace("{n}", "1"),
        "downsample_{d}_norm": down.replace("{n}", "0"),
        "downsample_{d}": down.replace("{n}", "1"),
        **{f"stage_{{s}}_block_{{i}}/{mine}": f"{block}.{name}" for mine, name in zip(ours, inside[:4], strict=True)},
        "[stage_{s}_block_{i}/scale]": f"{block}.{inside[4]}",
        "norm": norm,
    }


_CONVNEXT = {
    "official": _convnext(
        "downsample_layers.0.{n}",
        "downsample_layers.{d}.{n}",
        "stages.{s}.{i}",
        ("dwconv", "norm", "pwconv1", "pwconv2", "gamma"),
        "norm",
    ),
    "timm": _convnext(
        "stem.{n}",
        "stages.{d}.downsample.{n}",
        "stages.{s}.blocks.{i}",
        ("conv_dw", "norm", "mlp.fc1", "mlp.fc2", "gamma"),
        "head.norm",
    ),
    "hf": _convnext(
        "embeddings.{n}",
        "encoder.stages.{d}.downsampling_layer.{n}",
        "encoder.stages.{s}.layers.{i}",
        ("dwconv", "layernorm", "pwconv1", "pwconv2", "layer_scale_parameter"),
        "layernorm",
    ),
    "hf_dinov3": _convnext(
        "stages.0.downsample_layers.{n}",
        "stages.{d}.downsample_layers.{n}",
        "stages.{s}.layers.{i}",
        ("depthwise_conv", "layer_norm", "pointwise_conv1", "pointwise_conv2", "gamma"),
        "layer_norm",
    ),
}
_CONVNEXT["hf"] |= {"stem": "embeddings.patch_embeddings", "stem_norm": "embeddings.layernorm"}
FAMILIES = {"resnet": _RESNET, "convnext": _CONVNEXT}

# A name that each format has, and no other one.
_MARKS = (
    (r"layer\d\.\d+\.conv3\.weight", "resnet", "official"),
    (r"encoder\.stages\.\d\.layers\.\d+\.layer\.2\.convolution\.weight", "resnet", "hf"),
    (r"stages\.\d\.\d+\.dwconv\.weight", "convnext", "official"),
    (r"stages\.\d\.blocks\.\d+\.conv_dw\.weight", "convnext", "timm"),
    (r"encoder\.stages\.\d\.layers\.\d+\.dwconv\.weight", "convnext", "hf"),
    (r"stages\.\d\.layers\.\d+\.depthwise_conv\.weight", "convnext", "hf_dinov3"),
)
# Classifiers, counters, and DINOv3's second name for its last norm.
_IGNORED = re.compile(r"(fc|classifier|head)\.(?!norm\.).*|.*\.num_batches_tracked|norms\.3\..*")
_PREFIXES = re.compile(r"^(module\.|_orig_mod\.|backbone\.|resnet\.|convnext\.|model\.)+")
_BATCH_NORM = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "variance"}


def detect(names: Sequence[str] | Mapping[str, Any]) -> tuple[str, str] | None:
    """Returns family ("resnet" or "convnext") and format of these names, or None for other networks."""
    plain = {_PREFIXES.sub("", name) for name in names}
    for mark, family, form in _MARKS:
        if any(re.fullmatch(mark, name) for name in plain):
            return family, form
    return None


def collect_convolutional(
    weights: Mapping[str, Any], family: str, form: str
) -> tuple[ReadNames, tuple[int, ...], Callable[[str], str]]:
    """Reads what can be read of a ResNet or ConvNeXt.

    Args:
        weights: under the names of a library.
        family: see `detect`.
        form: see `detect`.

    Returns:
        What came of it, the blocks of each stage, and what says how the library calls a path of ours.
    """
    named = [(_PREFIXES.sub("", name), array) for name, array in weights.items()]
    stages = _count_blocks(dict(named), FAMILIES[family][form])
    places = dict(_names(family, form, stages))
    flat, unknown, wrong, spoiled = {}, [], [], set()
    for name, array in named:
        if name not in places:
            plain = isinstance(array, bool | int | float | str | None)
            unknown += [] if plain or _IGNORED.fullmatch(name) else [name]
            continue
        fault = fault_of(array)
        if fault is None and places[name] in flat:
            fault = "there twice, under different prefixes"
        if fault is None:
            flat[places[name]] = _turn(np.asarray(array, np.float32), inverse=False)
        else:
            wrong.append(f"{name} is {fault}")
            spoiled.add(places[name])
    names = {place: name for name, place in places.items()}
    return ReadNames(flat, no_place(unknown) + wrong, spoiled), stages, lambda place: names.get(place, "")


def write_convolutional(params: Params, form: str) -> dict[str, np.ndarray]:
    """Returns arrays under the names of a library, the inverse of `collect_convolutional`.

    Args:
        params: of a ResNet or ConvNeXt.
        form: "official" (torchvision and DINO; ConvNeXt's authors), "timm" or "hf".
    """
    flat = flatten(params)
    family = "resnet" if "norm/variance" in flat else "convnext"
    names = {place: name for name, place in _names(family, form, stages_of(params))}
    weights = {names[place]: np.ascontiguousarray(_turn(array, inverse=True)) for place, array in flat.items()}
    # PyTorch counts the batches behind its statistics, to no effect.
    counted = [name.removesuffix("running_mean") for name in weights if name.endswith(".running_mean")]
    return weights | {f"{name}num_batches_tracked": np.zeros((), np.int64) for name in counted}


def describe_convolutional(params: Params) -> dict[str, Any]:
    """Returns what Hugging Face's AutoModel needs to know of a ResNet or ConvNeXt."""
    stages, flat = stages_of(params), flatten(params)
    resnet = "norm/variance" in flat
    last = "norm_3/scale" if resnet else "scale"
    shared = {
        "architectures": ["ResNetModel" if resnet else "ConvNextModel"],
        "model_type": "resnet" if resnet else "convnext",
        "hidden_sizes": [len(flat[f"stage_{stage}_block_0/{last}"]) for stage in range(len(stages))],
        "depths": list(stages),
        "hidden_act": "relu" if resnet else "gelu",
    }
    if resnet:
        return {**shared, "embedding_size": len(flat["norm/scale"]), "layer_type": "bottleneck"}
    return {**shared, "num_stages": len(stages), "patch_size": 4, "layer_norm_eps": 1e-6}


def is_convolutional(params: Mapping[str, Any]) -> bool:
    """Returns whether these are the parameters of a ResNet or ConvNeXt."""
    return "stem" in params


def stages_of(params: Mapping[str, Any]) -> tuple[int, ...]:
    """Returns the blocks of each stage."""
    stages = [int(match[1]) for name in params if (match := re.fullmatch(r"stage_(\d)_block_\d+", name))]
    return tuple(stages.count(stage) for stage in range(max(stages) + 1))


def _names(family: str, form: str, stages: Sequence[int]) -> Iterator[tuple[str, str]]:
    """Yields each name of a library and our place for it."""
    for ours, theirs in FAMILIES[family][form].items():
        for where in _expand(ours, stages):
            place, name = ours.format(**where), theirs.format(**where)
            if place.startswith("["):
                yield name, place.strip("[]")
            elif place.startswith("("):
                for end, mine in _BATCH_NORM.items():
                    yield f"{name}.{end}", f"{place.strip('()')}/{mine}"
            else:
                is_norm = "norm" in place.rsplit("/", 1)[-1]
                yield f"{name}.weight", f"{place}/{'scale' if is_norm else 'kernel'}"
                if family == "convnext":
                    yield f"{name}.bias", f"{place}/bias"


def _expand(ours: str, stages: Sequence[int]) -> Iterator[dict[str, int]]:
    """Yields the numbers of stages and blocks that a place stands for; {S} counts stages from 1."""
    if "{d}" in ours:
        yield from ({"d": stage} for stage in range(1, len(stages)))
    elif "{s}" not in ours:
        yield {}
    else:
        for stage, count in enumerate(stages):
            for index in range(count if "{i}" in ours else 1):
                yield {"s": stage, "S": stage + 1, "i": index}


def _count_blocks(names: Mapping[str, Any], table: Mapping[str, str]) -> tuple[int, ...]:
    place = next(theirs for ours, theirs in table.items() if "{i}" in ours)
    pattern = re.escape(place).replace(r"\{s\}", r"(?P<s>\d)").replace(r"\{S\}", r"(?P<S>\d)")
    pattern = pattern.replace(r"\{i\}", r"(?P<i>\d+)") + r"(\..*)?"
    found = [(int(match[1]), int(match["i"])) for name in names if (match := re.fullmatch(pattern, name))]
    first = 1 if "{S}" in place else 0
    return tuple(
        1 + max((index for stage, index in found if stage == number + first), default=-1) for number in range(4)
    )


def _turn(array: np.ndarray, *, inverse: bool) -> np.ndarray:
    """Turns kernels from PyTorch's axes (outputs first) to ours (outputs last), or back."""
    if array.ndim == 4:
        return array.transpose(3, 2, 0, 1) if inverse else array.transpose(2, 3, 1, 0)
    return array.T if array.ndim == 2 else array
