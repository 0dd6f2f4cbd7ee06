"""Weights out: under the names of the official code, of timm, or of Hugging Face, and read back at once."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from croc_jax.checkpoints.convolutional_names import describe_for_hf, is_convolutional, write_convolutional
from croc_jax.checkpoints.names import Params, WeightNamesError, flatten, write_names
from croc_jax.checkpoints.weight_files import HF_CONFIG, HF_WEIGHTS
from croc_jax.models import BackboneConfig, VisionTransformer, make_backbone
from croc_jax.models.position_embedding import ROPE_BASE

# For people; the tables know Hugging Face's three families apart.
FORMATS = ("official", "timm", "hf")


class ExportError(ValueError):
    """Weights cannot be written in a format; the message says why and what to do."""


def export_backbone(params: Params, config: BackboneConfig, *, image_size: int, output: Path, form: str) -> Path:
    """Writes a backbone; returns the file.

    Args:
        params: of the backbone.
        config: of the backbone.
        image_size: that its position embedding was learned for.
        output: a .safetensors file; a .pth file, which needs PyTorch; or, for "hf", a folder.
        form: "official" (CrOC, DINO, DINOv2), "timm" or "hf".

    Raises:
        ExportError: for another format or kind of file, or an architecture that the library does not have.
    """
    if form not in FORMATS:
        raise ExportError(f"format={form!r}: choose one of {', '.join(FORMATS)}")
    if is_convolutional(params):
        weights, described = write_convolutional(params, form), describe_for_hf(params)
    else:
        weights, described = _rename_transformer(params, config, form, image_size=image_size)
    if form == "hf":
        output.mkdir(parents=True, exist_ok=True)
        (output / HF_CONFIG).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
        output = output / HF_WEIGHTS
    write_arrays(weights, output)
    return output


def _rename_transformer(
    params: Params, config: BackboneConfig, form: str, *, image_size: int
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Returns arrays under a library's names, and what Hugging Face needs to know of them."""
    family = _hf_family(config) if form == "hf" else form
    try:
        weights = write_names(params, family)
    except WeightNamesError as error:
        raise ExportError(str(error)) from error
    if form == "timm" and config.num_registers:
        weights = _without_cls_position(weights)
    if family == "hf_dinov3" and config.mlp == "swiglu":
        weights = _with_gates(weights)
    if form != "hf":
        return weights, {}
    return weights, _hf_config(config, family, image_size=image_size, num_blocks=_count_blocks(params))


def write_arrays(contents: Mapping[str, Any], file: Path) -> None:
    """Writes arrays, or dictionaries of them, whole or not at all.

    Args:
        contents: by name.
        file: .safetensors (arrays alone), .pth or .pt.

    Raises:
        ExportError: for another suffix, or a .pth file where PyTorch is not installed.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(file.name + ".partial")
    if file.suffix == ".safetensors":
        safetensors.numpy.save_file(dict(contents), partial)
    elif file.suffix in (".pth", ".pt"):
        try:
            import torch  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise ExportError(f"{file}: .pth files need PyTorch (pip install torch); or choose .safetensors") from None

        def to_tensors(value: Any) -> Any:
            if isinstance(value, Mapping):
                return {name: to_tensors(inner) for name, inner in value.items()}
            return torch.from_numpy(np.array(value)) if isinstance(value, np.ndarray) else value

        torch.save(to_tensors(contents), partial)
    else:
        raise ExportError(f"{file}: choose a name that ends in .safetensors or .pth")
    partial.replace(file)


def _without_cls_position(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Timm's transformers with registers have no place for [CLS]: it is added to the token."""
    position = weights["pos_embed"]
    return weights | {"cls_token": weights["cls_token"] + position[:, :1], "pos_embed": position[:, 1:].copy()}


def _with_gates(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Hugging Face's DINOv3 keeps what gates, and what is gated, in two matrices."""
    split = {}
    for name, array in weights.items():
        if ".mlp.up_proj." in name:
            gate, up = np.split(array, 2)
            split |= {name.replace("up_proj", "gate_proj"): np.ascontiguousarray(gate), name: np.ascontiguousarray(up)}
        else:
            split[name] = array
    return split


def _count_blocks(params: Params) -> int:
    return len({path.split("/")[0] for path in flatten(params) if path.startswith("block_")})


def _hf_family(config: BackboneConfig) -> str:
    if config.positions == "rope":
        if not config.layer_scale:
            raise ExportError(
                "positions='rope', layer_scale=False: Hugging Face's DINOv3 always scales; choose official"
            )
        return "hf_dinov3"
    return "hf_dinov2" if config.layer_scale else "hf_vit"


def _hf_config(config: BackboneConfig, family: str, *, image_size: int, num_blocks: int) -> dict[str, Any]:
    """Returns what Hugging Face's AutoModel needs to know."""
    module = make_backbone(config, image_size=image_size)
    assert isinstance(module, VisionTransformer), "others have another description"
    kind, extra = ("vit", {"intermediate_size": round(module.width * config.mlp_ratio)})
    name = "ViTModel"
    if family == "hf_dinov2":
        registers = config.num_registers
        kind, name = ("dinov2_with_registers", "Dinov2WithRegistersModel") if registers else ("dinov2", "Dinov2Model")
        extra = {"mlp_ratio": 4, "use_swiglu_ffn": config.mlp == "swiglu"}
        extra |= {"num_register_tokens": registers} if registers else {}
    if family == "hf_dinov3":
        kind, name, gated = "dinov3_vit", "DINOv3ViTModel", config.mlp == "swiglu"
        extra = {"intermediate_size": round(module.width * config.mlp_ratio), "use_gated_mlp": gated}
        extra |= {"num_register_tokens": config.num_registers, "rope_theta": ROPE_BASE, "key_bias": True}
        extra |= {"hidden_act": "silu" if gated else "gelu"}
    return {
        "architectures": [name],
        "model_type": kind,
        "hidden_size": module.width,
        "num_hidden_layers": num_blocks,
        "num_attention_heads": module.num_heads,
        "patch_size": config.patch_size,
        "image_size": image_size,
        "layer_norm_eps": config.norm_epsilon,
        "hidden_act": "gelu",
        "qkv_bias": True,
        **extra,
    }
