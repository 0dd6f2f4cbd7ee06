"""Names of the parameters of ResNet and ConvNeXt in PyTorch's libraries and here, read both ways."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from croc_jax.checkpoints.param_mapping import STEM, Reading, Slot, Weights, count_from_zero, read_slots, write_slots

# Our path, and the format's name for it; {s} is a stage, {S} the same counted from 1, {d} a stage but the first, and
# {i} a block of the stage. A path in parentheses is a batch normalization, one in brackets a scale; all others have
# kernels (and biases).
_RESNET_HF = "encoder.stages.{s}.layers"
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
            f"{path}_{n}{end}": f"{_RESNET_HF}.{{i}}.layer.{n - 1}.{name}"
            for path, end, name in (
                ("stage_{s}_block_{i}/conv", "", "convolution"),
                ("(stage_{s}_block_{i}/norm", ")", "normalization"),
            )
            for n in (1, 2, 3)
        },
        "stage_{s}_block_0/shortcut": f"{_RESNET_HF}.0.shortcut.convolution",
        "(stage_{s}_block_0/norm_shortcut)": f"{_RESNET_HF}.0.shortcut.normalization",
    },
}
_RESNET["timm"] = _RESNET["official"]
# Our paths in a ConvNeXt, and the names of them all in each format.
_CONVNEXT_PATHS = (
    "stem", "stem_norm", "downsample_{d}_norm", "downsample_{d}", "stage_{s}_block_{i}/depthwise",
    "stage_{s}_block_{i}/norm", "stage_{s}_block_{i}/mlp_1", "stage_{s}_block_{i}/mlp_2",
    "[stage_{s}_block_{i}/scale]", "norm",
)  # fmt: skip
_CONVNEXT = {
    form: dict(zip(_CONVNEXT_PATHS, names.split(), strict=True))
    for form, names in {
        "official": """downsample_layers.0.0 downsample_layers.0.1 downsample_layers.{d}.0 downsample_layers.{d}.1
            stages.{s}.{i}.dwconv stages.{s}.{i}.norm stages.{s}.{i}.pwconv1 stages.{s}.{i}.pwconv2
            stages.{s}.{i}.gamma norm""",
        "timm": """stem.0 stem.1 stages.{d}.downsample.0 stages.{d}.downsample.1
            stages.{s}.blocks.{i}.conv_dw stages.{s}.blocks.{i}.norm stages.{s}.blocks.{i}.mlp.fc1
            stages.{s}.blocks.{i}.mlp.fc2 stages.{s}.blocks.{i}.gamma head.norm""",
        "hf": """embeddings.patch_embeddings embeddings.layernorm
            encoder.stages.{d}.downsampling_layer.0 encoder.stages.{d}.downsampling_layer.1
            encoder.stages.{s}.layers.{i}.dwconv encoder.stages.{s}.layers.{i}.layernorm
            encoder.stages.{s}.layers.{i}.pwconv1 encoder.stages.{s}.layers.{i}.pwconv2
            encoder.stages.{s}.layers.{i}.layer_scale_parameter layernorm""",
        "hf_dinov3": """stages.0.downsample_layers.0 stages.0.downsample_layers.1
            stages.{d}.downsample_layers.0 stages.{d}.downsample_layers.1
            stages.{s}.layers.{i}.depthwise_conv stages.{s}.layers.{i}.layer_norm
            stages.{s}.layers.{i}.pointwise_conv1 stages.{s}.layers.{i}.pointwise_conv2
            stages.{s}.layers.{i}.gamma layer_norm""",
    }.items()
}
_FAMILIES = {"resnet": _RESNET, "convnext": _CONVNEXT}

# A name that each format has, and no other one.
_MARKS = (
    (r"layer\d\.\d+\.conv3\.weight", "resnet", "official"),
    (r"encoder\.stages\.\d\.layers\.\d+\.layer\.2\.convolution\.weight", "resnet", "hf"),
    (r"stages\.\d\.\d+\.dwconv\.weight", "convnext", "official"),
    (r"stages\.\d\.blocks\.\d+\.conv_dw\.weight", "convnext", "timm"),
    (r"encoder\.stages\.\d\.layers\.\d+\.dwconv\.weight", "convnext", "hf"),
    (r"stages\.\d\.layers\.\d+\.depthwise_conv\.weight", "convnext", "hf_dinov3"),
)
# Counters, and DINOv3's second name for its last norm.
_IGNORED = re.compile(r".*\.num_batches_tracked|norms\.3\..*")
# A ResNet as a list of its children, as in lightly's examples.
_CHILDREN = {"0": "conv1", "1": "bn1", **{str(3 + stage): f"layer{stage}" for stage in (1, 2, 3, 4)}}
_BATCH_NORM = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "variance"}


def name_children(weights: Weights) -> Weights:
    """Returns the arrays of a ResNet whose children have numbers under torchvision's names; all others as they are."""
    if "4.0.conv1.weight" not in weights:
        return weights
    parts = {name: name.partition(".") for name in weights}
    return {f"{_CHILDREN.get(first, first)}.{rest}": weights[name] for name, (first, _, rest) in parts.items()}


def detect_family(names: Iterable[str]) -> tuple[str, str] | None:
    """Returns family ("resnet" or "convnext") and format of these names, or None for other networks."""
    listed = list(names)
    for mark, family, form in _MARKS:
        if any(re.fullmatch(mark, name) for name in listed):
            return family, form
    return None


def read_convnet(weights: Weights, family: str, form: str) -> tuple[Reading, tuple[int, ...]]:
    """Reads a ResNet or ConvNeXt.

    Args:
        weights: arrays under the names of a library.
        family: see `detect_family`.
        form: see `detect_family`.

    Returns:
        What was read, and the number of blocks of each stage.
    """
    stages = _count_blocks(weights, _FAMILIES[family][form])
    return read_slots(weights.items(), dict(_slots(family, form, stages)), _IGNORED), stages


def write_convnet(flat: Mapping[str, np.ndarray], form: str) -> dict[str, np.ndarray]:
    """Returns arrays under the names of a library, the inverse of `read_convnet`.

    Args:
        flat: arrays by our path.
        form: "official" (torchvision and DINO; ConvNeXt's authors), "timm" or "hf".
    """
    weights = write_slots(flat, dict(_slots(family_of(flat), form, stages_of(flat))))
    # PyTorch counts the batches behind its statistics, to no effect.
    counted = [name.removesuffix("running_mean") for name in weights if name.endswith(".running_mean")]
    return weights | {f"{name}num_batches_tracked": np.zeros((), np.int64) for name in counted}


def hf_config_of_convnet(flat: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Returns the config.json that Hugging Face's AutoModel needs for a ResNet or ConvNeXt."""
    stages, family = stages_of(flat), family_of(flat)
    last = "norm_3/scale" if family == "resnet" else "scale"
    shared = {
        "architectures": ["ResNetModel" if family == "resnet" else "ConvNextModel"],
        "model_type": family,
        "hidden_sizes": [len(flat[f"stage_{stage}_block_0/{last}"]) for stage in range(len(stages))],
        "depths": list(stages),
        "hidden_act": "relu" if family == "resnet" else "gelu",
        "num_channels": flat[STEM].shape[2],
    }
    if family == "resnet":
        return {**shared, "embedding_size": len(flat["norm/scale"]), "layer_type": "bottleneck"}
    return {**shared, "num_stages": len(stages), "patch_size": 4, "layer_norm_eps": 1e-6}


def family_of(flat: Mapping[str, np.ndarray]) -> str | None:
    """Returns "resnet", "convnext", or None for the parameters of other networks."""
    if STEM not in flat:
        return None
    return "resnet" if "norm/variance" in flat else "convnext"


def stages_of(flat: Mapping[str, np.ndarray]) -> tuple[int, ...]:
    """Returns the number of blocks of each stage."""
    blocks = {match[0] for path in flat if (match := re.match(r"stage_\d_block_\d+", path))}
    return tuple(sum(block.startswith(f"stage_{stage}_") for block in blocks) for stage in range(4))


def _slots(family: str | None, form: str, stages: Sequence[int]) -> Iterator[tuple[str, Slot]]:
    """Yields each name of a library and its slot."""
    for ours, theirs in _FAMILIES[family or ""][form].items():
        for numbers in _numbers(ours, stages):
            path, name = ours.format(**numbers), theirs.format(**numbers)
            if path.startswith("["):
                yield name, Slot(path.strip("[]"))
            elif path.startswith("("):
                for end, mine in _BATCH_NORM.items():
                    yield f"{name}.{end}", Slot(f"{path.strip('()')}/{mine}")
            else:
                is_norm = "norm" in path.rsplit("/", 1)[-1]
                yield f"{name}.weight", Slot(f"{path}/scale") if is_norm else Slot(f"{path}/kernel", "kernel")
                if family == "convnext":
                    yield f"{name}.bias", Slot(f"{path}/bias")


def _numbers(ours: str, stages: Sequence[int]) -> Iterator[dict[str, int]]:
    """Yields the numbers of stages and blocks that a path stands for."""
    if "{d}" in ours:
        yield from ({"d": stage} for stage in range(1, len(stages)))
    elif "{s}" not in ours:
        yield {}
    else:
        for stage, count in enumerate(stages):
            for index in range(count if "{i}" in ours else 1):
                yield {"s": stage, "S": stage + 1, "i": index}


def _count_blocks(names: Weights, table: Mapping[str, str]) -> tuple[int, ...]:
    place = next(theirs for ours, theirs in table.items() if "{i}" in ours)
    pattern = re.escape(place).replace(r"\{s\}", r"(?P<s>\d)").replace(r"\{S\}", r"(?P<S>\d)")
    pattern = pattern.replace(r"\{i\}", r"(?P<i>\d{1,6})") + r"(\..*)?"
    found = [(int(match[1]), int(match["i"])) for name in names if (match := re.fullmatch(pattern, name))]
    first = 1 if "{S}" in place else 0
    stages = [[index for stage, index in found if stage == number + first] for number in range(4)]
    return tuple(count_from_zero(blocks) if blocks else 0 for blocks in stages)
