"""Parameters under the names and in the layout of the official PyTorch code, both ways."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

Params = dict[str, Any]

# Each official name, the path of ours, and how the array is laid out there.
NAME_TABLE = (
    (r"backbone\.cls_token", "backbone/cls_token", "same"),
    (r"backbone\.pos_embed", "backbone/position_embedding", "same"),
    (r"backbone\.patch_embed\.proj\.weight", "backbone/patch_embedding/projection/kernel", "patches"),
    (r"backbone\.patch_embed\.proj\.bias", "backbone/patch_embedding/projection/bias", "same"),
    (r"backbone\.blocks\.(\d+)\.norm([12])\.weight", r"backbone/block_\1/norm_\2/scale", "same"),
    (r"backbone\.blocks\.(\d+)\.norm([12])\.bias", r"backbone/block_\1/norm_\2/bias", "same"),
    (r"backbone\.blocks\.(\d+)\.attn\.qkv\.weight", r"backbone/block_\1/attention/qkv/kernel", "linear"),
    (r"backbone\.blocks\.(\d+)\.attn\.qkv\.bias", r"backbone/block_\1/attention/qkv/bias", "same"),
    (r"backbone\.blocks\.(\d+)\.attn\.proj\.weight", r"backbone/block_\1/attention/projection/kernel", "linear"),
    (r"backbone\.blocks\.(\d+)\.attn\.proj\.bias", r"backbone/block_\1/attention/projection/bias", "same"),
    (r"backbone\.blocks\.(\d+)\.mlp\.fc([12])\.weight", r"backbone/block_\1/mlp_\2/kernel", "linear"),
    (r"backbone\.blocks\.(\d+)\.mlp\.fc([12])\.bias", r"backbone/block_\1/mlp_\2/bias", "same"),
    (r"backbone\.norm\.weight", "backbone/norm/scale", "same"),
    (r"backbone\.norm\.bias", "backbone/norm/bias", "same"),
    (r"head\.mlp\.0\.weight", "head/mlp_1/kernel", "linear"),
    (r"head\.mlp\.0\.bias", "head/mlp_1/bias", "same"),
    (r"head\.mlp\.2\.weight", "head/mlp_2/kernel", "linear"),
    (r"head\.mlp\.2\.bias", "head/mlp_2/bias", "same"),
    (r"head\.mlp\.4\.weight", "head/mlp_3/kernel", "linear"),
    (r"head\.mlp\.4\.bias", "head/mlp_3/bias", "same"),
    (r"head\.last_layer\.weight_g", "head/last_layer/scale", "same"),
    (r"head\.last_layer\.weight_v", "head/last_layer/direction", "same"),
    (r"head\.last_layer_c\.weight_g", "head/last_layer_dense/scale", "same"),
    (r"head\.last_layer_c\.weight_v", "head/last_layer_dense/direction", "same"),
)


def from_official(weights: Mapping[str, np.ndarray]) -> Params:
    """Returns {"backbone": ..., "head": ...} from arrays under official names.

    Raises:
        ValueError: listing every name that the table does not know.
    """
    params: Params = {}
    unknown = []
    for name, array in weights.items():
        row = next(((target, layout) for source, target, layout in _matches(name)), None)
        if row is None:
            unknown.append(name)
            continue
        *folders, leaf = row[0].split("/")
        group = params
        for folder in folders:
            group = group.setdefault(folder, {})
        group[leaf] = _from_layout(np.asarray(array), row[1])
    if unknown:
        raise ValueError(f"no place for the weights {', '.join(sorted(unknown))}")
    return params


def _matches(name: str) -> list[tuple[str, str, str]]:
    found = ((re.fullmatch(source, name), target, layout) for source, target, layout in NAME_TABLE)
    return [(name, match.expand(target), layout) for match, target, layout in found if match]


def _from_layout(array: np.ndarray, layout: str) -> np.ndarray:
    if layout == "linear":
        return array.T
    if layout == "patches":
        return array.transpose(2, 3, 1, 0).reshape(-1, array.shape[0])
    return array
