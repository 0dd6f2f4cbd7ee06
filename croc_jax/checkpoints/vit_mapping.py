"""Names of a transformer's weights in PyTorch's libraries, and ours: one table, read both ways."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

Params = dict[str, Any]
# Of the table: libraries, and the families that they tell apart.
COLUMNS = ("official", "timm", "hf_vit", "hf_dinov2", "hf_dinov3", "official_dinov3", "timm_dinov3")


@dataclasses.dataclass(frozen=True)
class Row:
    """One array of ours, and what others call it; {i} is the number of a block.

    Attributes:
        ours: path in our parameters.
        names: by column (`COLUMNS`); no column, no such array there.
        aliases: further names that are read.
        layout: "same", "linear" (transposed) or "patches".
        part: this array is number part[0] of part[1] along the outputs of ours.
    """

    ours: str
    names: Mapping[str, str]
    aliases: tuple[str, ...] = ()
    layout: str = "same"
    part: tuple[int, int] | None = None


def _names(*names: str, **of_dinov3: str) -> dict[str, str]:
    """Returns names by column, in the order of the first five of `COLUMNS`; an empty one is left out.

    DINOv3 has its own in two libraries, but where `of_dinov3` holds none, those of the library's other models.
    """
    found = dict(zip(COLUMNS[:5], names, strict=True))
    found |= {f"{form}_dinov3": of_dinov3.get(form, found[form]) for form in ("official", "timm")}
    return {form: name for form, name in found.items() if name}


def _weight_and_bias(
    ours: str,
    names: Mapping[str, str],
    *,
    aliases: tuple[str, ...] = (),
    layout: str = "linear",
    part: tuple[int, int] | None = None,
) -> tuple[Row, Row]:
    """Returns the rows of a linear map or a normalization."""
    kernel = "scale" if layout == "same" else "kernel"
    ends = (("weight", kernel, layout), ("bias", "bias", "same"))
    weight, bias = (
        Row(
            f"{ours}/{mine}",
            {form: f"{name}.{end}" for form, name in names.items()},
            tuple(f"{alias}.{end}" for alias in aliases),
            how,
            part,
        )
        for end, mine, how in ends
    )
    return weight, bias


_OLD, _NEW = "encoder.layer.{i}.", "layer.{i}."
_VIT_QKV = [f"{_OLD}attention.attention.{kind}" for kind in ("query", "key", "value")]
_DINOV3_QKV = [f"{_NEW}attention.{kind}_proj" for kind in "qkv"]

TABLE: tuple[Row, ...] = (
    Row("cls_token", _names("cls_token", "cls_token", *["embeddings.cls_token"] * 3)),
    Row("position_embedding", _names("pos_embed", "pos_embed", *["embeddings.position_embeddings"] * 2, "")),
    Row(
        "register_tokens",
        _names("register_tokens", "reg_token", "", *["embeddings.register_tokens"] * 2, official="storage_tokens"),
    ),
    *_weight_and_bias(
        "patch_embedding/projection",
        _names(
            *["patch_embed.proj"] * 2, *["embeddings.patch_embeddings.projection"] * 2, "embeddings.patch_embeddings"
        ),
        layout="patches",
    ),
    *_weight_and_bias(
        "block_{i}/norm_1",
        _names(*["blocks.{i}.norm1"] * 2, f"{_OLD}layernorm_before", f"{_OLD}norm1", f"{_NEW}norm1"),
        layout="same",
    ),
    *_weight_and_bias(
        "block_{i}/norm_2",
        _names(*["blocks.{i}.norm2"] * 2, f"{_OLD}layernorm_after", f"{_OLD}norm2", f"{_NEW}norm2"),
        layout="same",
    ),
    *_weight_and_bias("block_{i}/attention/qkv", _names(*["blocks.{i}.attn.qkv"] * 2, "", "", "")),
    *(
        row
        for index in range(3)
        for row in _weight_and_bias(
            "block_{i}/attention/qkv",
            _names("", "", _VIT_QKV[index], _VIT_QKV[index], _DINOV3_QKV[index]),
            aliases=(f"{_OLD}attention.{'qkv'[index]}_proj",),
            part=(index, 3),
        )
    ),
    *(
        Row(
            "block_{i}/attention/qkv/bias",
            # timm's model has no bias of keys.
            {} if kind == "k" else {"timm_dinov3": f"blocks.{{i}}.attn.{kind}_bias"},
            (f"blocks.{{i}}.attn.{kind}_bias",),
            part=(index, 3),
        )
        for index, kind in enumerate("qkv")
    ),
    *_weight_and_bias(
        "block_{i}/attention/projection",
        _names(*["blocks.{i}.attn.proj"] * 2, *[f"{_OLD}attention.output.dense"] * 2, f"{_NEW}attention.o_proj"),
        aliases=(f"{_OLD}attention.o_proj",),
    ),
    *(
        Row(
            f"block_{{i}}/scale_{n}",
            _names(
                *[f"blocks.{{i}}.ls{n}.gamma"] * 2,
                "",
                f"{_OLD}layer_scale{n}.lambda1",
                f"{_NEW}layer_scale{n}.lambda1",
                timm=f"blocks.{{i}}.gamma_{n}",
            ),
        )
        for n in (1, 2)
    ),
    *_weight_and_bias(
        "block_{i}/mlp_1",
        _names(*["blocks.{i}.mlp.fc1"] * 2, f"{_OLD}intermediate.dense", f"{_OLD}mlp.fc1", f"{_NEW}mlp.up_proj"),
        aliases=("blocks.{i}.mlp.w12", f"{_OLD}mlp.weights_in"),
    ),
    *(
        row
        for index, kinds in enumerate((("w1", "fc1_g", "gate_proj"), ("w2", "fc1_x", "up_proj")))
        for row in _weight_and_bias(
            "block_{i}/mlp_1",
            {
                "official_dinov3": f"blocks.{{i}}.mlp.{kinds[0]}",
                "timm_dinov3": f"blocks.{{i}}.mlp.{kinds[1]}",
                "hf_dinov3": f"{_NEW}mlp.{kinds[2]}",
            },
            # See `_normalize_names` for up_proj.
            aliases=tuple(f"{layer}mlp.{kinds[2].replace('up', 'gated_up')}" for layer in (_OLD, _NEW)),
            part=(index, 2),
        )
    ),
    *_weight_and_bias(
        "block_{i}/mlp_2",
        _names(*["blocks.{i}.mlp.fc2"] * 2, f"{_OLD}output.dense", f"{_OLD}mlp.fc2", f"{_NEW}mlp.down_proj"),
        aliases=("blocks.{i}.mlp.w3", f"{_OLD}mlp.weights_out", f"{_OLD}mlp.down_proj"),
    ),
    *_weight_and_bias("norm", _names("norm", "norm", "layernorm", "layernorm", "norm"), layout="same"),
)


class WeightNamesError(ValueError):
    """Names or shapes fit no transformer of ours; the message lists all of them."""


def write_names(params: Params, form: str) -> dict[str, np.ndarray]:
    """Returns arrays under the names of a library.

    Args:
        params: of a backbone.
        form: one of `COLUMNS`.

    Raises:
        WeightNamesError: listing every parameter that the library's model has no name for.
    """
    flat, weights, lost = flatten(params), {}, []
    gated = is_gated(flat)
    for path, array in flat.items():
        block = re.match(r"block_(\d+)/", path)
        generic = re.sub(r"^block_\d+/", "block_{i}/", path)
        rows = [row for row in TABLE if row.ours == generic and form in row.names]
        # Gated or not, mlp_1 has names; two matrices of one kind come before one of both.
        parts = [row for row in rows if row.part and (gated or "mlp_1" not in path)]
        rows = parts or [row for row in rows if not row.part]
        if not rows:
            lost.append(path)
        for row in rows:
            name = row.names[form].replace("{i}", block[1] if block else "")
            part = np.split(array, row.part[1], axis=-1)[row.part[0]] if row.part else array
            name = _gated(name) if gated and not form.startswith("timm") else name
            weights[name] = np.ascontiguousarray(_to_layout(part, row.layout))
    if lost:
        raise WeightNamesError(f"the format {form} has no names for {', '.join(sorted(lost))}")
    return weights


def is_gated(flat: Mapping[str, np.ndarray]) -> bool:
    """Returns whether the first matrix of the MLPs gives twice what the second takes."""
    return flat["block_0/mlp_1/bias"].shape[0] == 2 * flat["block_0/mlp_2/kernel"].shape[0]


def _gated(name: str) -> str:
    """Returns what DINOv2 calls the matrices of a gated MLP; timm has no other names for them."""
    for plain, official, hf in (("fc1", "w12", "weights_in"), ("fc2", "w3", "weights_out")):
        name = re.sub(rf"^(encoder\.layer\.\d+\.mlp\.){plain}", rf"\1{hf}", name)
        name = re.sub(rf"^(blocks\.\d+\.mlp\.){plain}", rf"\1{official}", name)
    return name


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


def flatten(params: Mapping[str, Any], prefix: str = "") -> dict[str, np.ndarray]:
    """Returns {"a/b": x} for {"a": {"b": x}}."""
    flat = {}
    for name, value in params.items():
        flat |= flatten(value, f"{prefix}{name}/") if isinstance(value, Mapping) else {prefix + name: np.asarray(value)}
    return flat


def _to_layout(array: np.ndarray, layout: str) -> np.ndarray:
    if layout == "linear":
        return array.T
    if layout == "patches":
        side = round((len(array) / 3) ** 0.5)
        return array.reshape(side, side, 3, -1).transpose(3, 2, 0, 1)
    return array
