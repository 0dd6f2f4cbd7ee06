"""Names of a vision transformer's parameters in PyTorch's libraries and here: one table, read both ways."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from croc_jax.checkpoints.param_mapping import Reading, Slot, Weights, count_from_zero, read_slots, write_slots

COLUMNS: tuple[str, ...] = ("official", "timm", "hf_vit", "hf_dinov2", "hf_dinov3", "official_dinov3", "timm_dinov3")
_BLOCKS: dict[str, str] = dict(
    zip(COLUMNS, [*["blocks.{i}."] * 2, *["encoder.layer.{i}."] * 2, "layer.{i}.", *["blocks.{i}."] * 2], strict=True)
)


class Row(NamedTuple):
    """One of our parameters, and its names in other libraries; {i} is the number of a block.

    Attributes:
        path: of our parameter.
        names: by column (`COLUMNS`); no column, no such array there.
        gated: names by column where the MLPs are gated and called otherwise.
        aliases: further names that are read.
        layout: see `Slot`.
        part: see `Slot`.
    """

    path: str
    names: Mapping[str, str]
    gated: Mapping[str, str] = {}
    aliases: tuple[str, ...] = ()
    layout: str = "same"
    part: tuple[int, int] | None = None


def _columns(*names: str, **dinov3: str) -> dict[str, str]:
    """Returns names by column, in the order of the first five of `COLUMNS`; an empty one is left out.

    Two libraries name DINOv3 as their other models, except for what `dinov3` holds by library.
    """
    found = dict(zip(COLUMNS[:5], names, strict=True))
    found |= {f"{form}_dinov3": dinov3.get(form, found[form]) for form in ("official", "timm")}
    return {form: name for form, name in found.items() if name}


def _linear(
    path: str,
    names: Mapping[str, str],
    *,
    gated: Mapping[str, str] | None = None,
    aliases: tuple[str, ...] = (),
    layout: str = "kernel",
    part: tuple[int, int] | None = None,
) -> Iterator[Row]:
    """Yields the rows of a linear map or a normalization: weight and bias; names in blocks lack the block's prefix."""
    kernel = "scale" if layout == "same" else "kernel"
    prefix = _BLOCKS if path.startswith("block_") else dict.fromkeys(COLUMNS, "")
    for theirs, ours, how in (("weight", kernel, layout), ("bias", "bias", "same")):
        full, other = (
            {form: f"{prefix[form]}{name}.{theirs}" for form, name in some.items()} for some in (names, gated or {})
        )
        yield Row(f"{path}/{ours}", full, other, tuple(f"{name}.{theirs}" for name in aliases), how, part)


def _table() -> Iterator[Row]:
    yield Row("cls_token", _columns("cls_token", "cls_token", *["embeddings.cls_token"] * 3))
    yield Row("position_embedding", _columns("pos_embed", "pos_embed", *["embeddings.position_embeddings"] * 2, ""))
    registers = ("register_tokens", "reg_token", "", *["embeddings.register_tokens"] * 2)
    yield Row("register_tokens", _columns(*registers, official="storage_tokens"))
    patches = ("patch_embed.proj", "patch_embed.proj", *["embeddings.patch_embeddings.projection"] * 2)
    projection = _columns(*patches, "embeddings.patch_embeddings")
    yield from _linear("patch_embedding/projection", projection, layout="patches")
    yield from _linear("norm", _columns("norm", "norm", "layernorm", "layernorm", "norm"), layout="same")
    norms = ("norm1", "norm1", "layernorm_before", "norm1", "norm1")
    yield from _linear("block_{i}/norm_1", _columns(*norms), layout="same")
    norms = ("norm2", "norm2", "layernorm_after", "norm2", "norm2")
    yield from _linear("block_{i}/norm_2", _columns(*norms), layout="same")
    yield from _linear("block_{i}/attention/qkv", _columns("attn.qkv", "attn.qkv", "", "", ""))
    for index, (letter, word) in enumerate(zip("qkv", ("query", "key", "value"), strict=True)):
        names = _columns("", "", *[f"attention.attention.{word}"] * 2, f"attention.{letter}_proj")
        aliases = (f"encoder.layer.{{i}}.attention.{letter}_proj",)
        yield from _linear("block_{i}/attention/qkv", names, aliases=aliases, part=(index, 3))
        bias = f"blocks.{{i}}.attn.{letter}_bias"
        # timm's DINOv3 has no bias of keys.
        names = {} if letter == "k" else {"timm_dinov3": bias}
        yield Row("block_{i}/attention/qkv/bias", names, aliases=(bias,), part=(index, 3))
    names = _columns("attn.proj", "attn.proj", *["attention.output.dense"] * 2, "attention.o_proj")
    aliases = ("encoder.layer.{i}.attention.o_proj",)
    yield from _linear("block_{i}/attention/projection", names, aliases=aliases)
    for n in (1, 2):
        hf, ours = f"layer_scale{n}.lambda1", f"blocks.{{i}}.ls{n}.gamma"
        names = (ours, ours, "", f"encoder.layer.{{i}}.{hf}", f"layer.{{i}}.{hf}")
        yield Row(f"block_{{i}}/scale_{n}", _columns(*names, timm=f"blocks.{{i}}.gamma_{n}"))
    names = _columns("mlp.fc1", "mlp.fc1", "intermediate.dense", "mlp.fc1", "mlp.up_proj")
    yield from _linear("block_{i}/mlp_1", names, gated={"official": "mlp.w12", "hf_dinov2": "mlp.weights_in"})
    for index, (official, timm, hf) in enumerate((("w1", "fc1_g", "gate_proj"), ("w2", "fc1_x", "up_proj"))):
        names = {"official_dinov3": f"mlp.{official}", "timm_dinov3": f"mlp.{timm}", "hf_dinov3": f"mlp.{hf}"}
        # up_proj is renamed by `_normalize_names` where it is a half.
        aliases = tuple(f"{block}.{{i}}.mlp.{hf.replace('up', 'gated_up')}" for block in ("encoder.layer", "layer"))
        yield from _linear("block_{i}/mlp_1", names, aliases=aliases, part=(index, 2))
    names = _columns("mlp.fc2", "mlp.fc2", "output.dense", "mlp.fc2", "mlp.down_proj")
    gated = {"official": "mlp.w3", "official_dinov3": "mlp.w3", "hf_dinov2": "mlp.weights_out"}
    aliases = ("encoder.layer.{i}.mlp.down_proj",)
    yield from _linear("block_{i}/mlp_2", names, gated=gated, aliases=aliases)


TABLE = tuple(_table())
# What files hold beside a backbone, DINOv3's norm of local crops among it.
_IGNORED = re.compile(
    r"embeddings\.mask_token|rope_embed\.periods|local_cls_norm\..*|blocks\.\d+\.attn\.qkv\.bias_mask"
)


def read_vit(weights: Weights) -> Reading:
    """Reads a vision transformer under the names of any known library."""
    named = _normalize_names(weights)
    slots: dict[str, Slot] = {}
    for row in TABLE:
        for name in (*row.names.values(), *row.gated.values(), *row.aliases):
            for block in range(_depth(name for name, _ in named) if "{i}" in row.path else 1):
                slots.setdefault(name.replace("{i}", str(block)), _slot(row, block))
    reading = read_slots(named, slots, _IGNORED)
    reading.problems.extend(_mask_biases(dict(named), reading.flat))
    _complete(reading.flat)
    return reading


def write_vit(flat: Mapping[str, np.ndarray], column: str, *, channels: int) -> dict[str, np.ndarray]:
    """Returns arrays under the names of a library.

    Args:
        flat: arrays by our path.
        column: one of `COLUMNS`.
        channels: channels of the images.

    Raises:
        ValueError: listing every parameter that the library has no name for.
    """
    depth = len([path for path in flat if path.endswith("attention/qkv/kernel")])
    return write_slots(flat, _column_slots(column, depth, gated=is_gated(flat)), channels=channels)


def is_gated(flat: Mapping[str, np.ndarray]) -> bool:
    """Returns whether the first matrix of the MLPs gives twice what the second takes."""
    return flat["block_0/mlp_1/bias"].shape[0] == 2 * flat["block_0/mlp_2/kernel"].shape[0]


def _column_slots(column: str, depth: int, *, gated: bool) -> dict[str, Slot]:
    rows = [row for row in TABLE if column in row.names]
    # Parameters in parts: mlp_1 only where it is gated.
    split = {row.path for row in rows if row.part and (gated or "mlp_1" not in row.path)}
    return {
        (row.gated if gated else {}).get(column, row.names[column]).replace("{i}", str(block)): _slot(row, block)
        for row in rows
        if (row.part is not None) == (row.path in split)
        for block in range(depth if "{i}" in row.path else 1)
    }


def _slot(row: Row, block: int) -> Slot:
    return Slot(row.path.replace("{i}", str(block)), row.layout, row.part)


def _depth(names: Any) -> int:
    found = (re.match(r"(?:blocks|encoder\.layer|layer)\.(\d{1,6})\.", name) for name in names)
    return count_from_zero(int(block[1]) for block in found if block)


def _normalize_names(weights: Weights) -> list[tuple[str, Any]]:
    """Returns arrays with names as in the table."""
    gated = any(name.endswith("mlp.gate_proj.weight") for name in weights)
    renamed = []
    for name, array in weights.items():
        # The newest Hugging Face names of blocks, and DINOv2's in chunks of blocks.
        name = re.sub(r"^(?:model\.)?layers?\.(\d+)\.", r"layer.\1.", name)
        name = re.sub(r"^layer\.(\d+)\.(layernorm_|mlp\.fc)", r"encoder.layer.\1.\2", name)
        name = re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", name)
        # One name for two things: the first matrix, or the half of it that the other one gates.
        name = name.replace("mlp.up_proj", "mlp.gated_up_proj") if gated else name
        renamed.append((name, array))
    return renamed


def _mask_biases(named: Weights, flat: dict[str, np.ndarray]) -> list[str]:
    """DINOv3's own files multiply the bias of queries, keys and values by a mask of ones and zeros."""
    problems = []
    for name, mask in named.items():
        if match := re.fullmatch(r"blocks\.(\d+)\.attn\.qkv\.bias_mask", name):
            bias = flat.get(path := f"block_{match[1]}/attention/qkv/bias")
            if bias is not None and np.shape(mask) == bias.shape:
                flat[path] = bias * np.nan_to_num(np.asarray(mask, np.float32), nan=0.0)
            elif bias is not None:
                problems.append(f"{name} is {np.shape(mask)}, expected {bias.shape}")
    return problems


def _complete(flat: dict[str, np.ndarray]) -> None:
    """Adds what some files leave out because it is zero: biases, and the position of [CLS]; drops empty registers."""
    if not any(path.endswith("attention/qkv/bias") for path in flat):
        for path in [path for path in flat if path.endswith("attention/qkv/kernel")]:
            flat[path.removesuffix("kernel") + "bias"] = np.zeros(flat[path].shape[-1], np.float32)
    embedding = flat.get("position_embedding")
    if embedding is not None and embedding.ndim == 3 and round(embedding.shape[1] ** 0.5) ** 2 == embedding.shape[1]:
        flat["position_embedding"] = np.concatenate([np.zeros_like(embedding[:, :1]), embedding], axis=1)
    if (registers := flat.get("register_tokens")) is not None and not registers.size:
        del flat["register_tokens"]
