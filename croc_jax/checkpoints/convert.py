"""Parameters of backbone and head under the names and in the layout of the official PyTorch code, both ways."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from croc_jax.checkpoints.architectures import choose_family, extra_arrays
from croc_jax.checkpoints.convnet_mapping import is_convolutional, write_convolutional
from croc_jax.checkpoints.pretrained_mapping import fault_of, no_place
from croc_jax.checkpoints.vit_mapping import Params, flatten, write_names
from croc_jax.models import BackboneConfig

# Each official name, and the path of ours; kernels are transposed.
HEAD_TABLE = {
    **{
        f"mlp.{2 * index}.{theirs}": f"mlp_{index + 1}/{ours}"
        for index in range(3)
        for theirs, ours in (("weight", "kernel"), ("bias", "bias"))
    },
    "last_layer.weight_g": "last_layer/scale",
    "last_layer.weight_v": "last_layer/direction",
    "last_layer_c.weight_g": "last_layer_dense/scale",
    "last_layer_c.weight_v": "last_layer_dense/direction",
}


def split_official(weights: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Returns what belongs to the backbone, what to the head, both without that prefix, and names of nothing."""
    backbone, head = (
        {name.removeprefix(prefix): array for name, array in weights.items() if name.startswith(prefix)}
        for prefix in ("backbone.", "head.")
    )
    return backbone, head, [name for name in weights if not name.startswith(("backbone.", "head."))]


def read_head(weights: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Returns arrays of a head by our path, from official names without "head.", and what is wrong with them."""
    flat, wrong = {}, no_place(f"head.{name}" for name in weights.keys() - HEAD_TABLE.keys())
    for name, path in HEAD_TABLE.items():
        fault = fault_of(weights[name]) if name in weights else None
        if fault is not None:
            wrong.append(f"head.{name} is {fault}")
        elif name in weights:
            flat[path] = _turn(path, np.asarray(weights[name], np.float32))
    return flat, wrong


def to_official(params: Params, config: BackboneConfig) -> dict[str, np.ndarray]:
    """Returns arrays under official names, as `split_official` takes them.

    Args:
        params: {"backbone": ..., "head": ...} or one of them.
        config: of the backbone, which tells what the modules of DINOv2 and DINOv3 hold beside our arrays.

    Raises:
        ExportError: if no official module has the architecture.
        WeightNamesError: listing every parameter without an official name.
    """
    weights = {}
    if "backbone" in params:
        weights = {f"backbone.{name}": array for name, array in _official_backbone(params["backbone"], config).items()}
    if "head" in params:
        names, flat = {ours: theirs for theirs, ours in HEAD_TABLE.items()}, flatten(params["head"])
        weights |= {f"head.{names[path]}": np.ascontiguousarray(_turn(path, array)) for path, array in flat.items()}
    return weights


def _official_backbone(params: Params, config: BackboneConfig) -> dict[str, np.ndarray]:
    if is_convolutional(params):
        return write_convolutional(params, "official")
    family = choose_family(params, config, "official")
    return write_names(params, family) | extra_arrays(params, config, family)


def _turn(path: str, array: np.ndarray) -> np.ndarray:
    return array.T if path.endswith("/kernel") else array
