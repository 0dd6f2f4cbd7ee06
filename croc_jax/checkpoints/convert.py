"""Parameters of backbone and head under the names and in the layout of the official PyTorch code, both ways."""

from collections.abc import Mapping

import numpy as np

from croc_jax.checkpoints.architectures import choose_family, extra_arrays
from croc_jax.checkpoints.convolutional_names import (
    detect,
    is_convolutional,
    read_convolutional,
    write_convolutional,
)
from croc_jax.checkpoints.names import Params, WeightNamesError, flatten, nest, read_names, write_names
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


def from_official(weights: Mapping[str, np.ndarray]) -> Params:
    """Returns {"backbone": ..., "head": ...} from arrays under official names; either may be missing.

    Raises:
        WeightNamesError: listing every name that the tables do not know.
    """
    parts = {kind: _below(weights, f"{kind}.") for kind in ("backbone", "head")}
    unknown = {name for name in weights if not name.startswith(("backbone.", "head."))}
    unknown |= {f"head.{name}" for name in parts["head"].keys() - HEAD_TABLE.keys()}
    if unknown:
        raise WeightNamesError(f"no place for the weights {', '.join(sorted(unknown))}")
    params: Params = {}
    if detect(parts["backbone"]):
        params["backbone"], *_ = read_convolutional(parts["backbone"])
    elif parts["backbone"]:
        params["backbone"] = read_names(parts["backbone"])
    if parts["head"]:
        flat = {HEAD_TABLE[name]: _turn(HEAD_TABLE[name], np.asarray(a)) for name, a in parts["head"].items()}
        params["head"] = nest(flat)
    return params


def to_official(params: Params, config: BackboneConfig | None = None) -> dict[str, np.ndarray]:
    """Returns arrays under official names, the inverse of `from_official`.

    Args:
        params: {"backbone": ..., "head": ...} or one of them.
        config: of the backbone; adds what the modules of DINOv2 and DINOv3 hold beside our arrays.

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


def _official_backbone(params: Params, config: BackboneConfig | None) -> dict[str, np.ndarray]:
    if is_convolutional(params):
        return write_convolutional(params, "official")
    if config is None:
        return write_names(params, "official" if "position_embedding" in params else "official_dinov3")
    family = choose_family(params, config, "official")
    return write_names(params, family) | extra_arrays(params, config, family)


def _below(weights: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): array for name, array in weights.items() if name.startswith(prefix)}


def _turn(path: str, array: np.ndarray) -> np.ndarray:
    return array.T if path.endswith("/kernel") else array
