"""Backbones in the names and formats of the official code, timm and Hugging Face."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from croc_jax.atomic_write import atomic_write
from croc_jax.checkpoints.description import HF_CONFIG, HF_PREPROCESSOR, describe_images
from croc_jax.checkpoints.file_kinds import HF_WEIGHTS
from croc_jax.checkpoints.manifest import flatten_tree
from croc_jax.checkpoints.param_mapping import STEM, Params
from croc_jax.checkpoints.param_mapping_convnet import family_of, hf_config_of_convnet, write_convnet
from croc_jax.checkpoints.param_mapping_vit import is_gated, write_vit
from croc_jax.models import BackboneConfig, VisionTransformer, make_backbone
from croc_jax.models.position_embedding import ROPE_BASE
from croc_jax.pixel_format import PixelFormat

FORMATS = ("official", "timm", "hf")
# Features of the stem in libraries without a setting for it.
_RESNET_STEM = 64
# Hidden features of gated MLPs in the official code come in multiples; Hugging Face's DINOv2 follows it.
_GATED_MULTIPLE = 8
_LARGEST_RATIO = 64

_Flat = Mapping[str, np.ndarray]


def export_backbone(
    params: Params,
    config: BackboneConfig,
    *,
    image_size: int,
    output: Path,
    form: str,
    pixels: PixelFormat | None = None,
) -> Path:
    """Writes a backbone; returns the file.

    Args:
        params: parameters of the backbone.
        config: settings of the backbone.
        image_size: side of the images that its position embedding was learned for.
        output: a .safetensors file; a .pth file, which needs PyTorch; or, for "hf", a folder.
        form: "official" (CrOC, DINO, DINOv2, DINOv3), "timm" or "hf".
        pixels: format of the images, which "hf" alone has a place for; by default 8-bit ones.

    Raises:
        ValueError: for another format or kind of file, or an architecture that the library does not have.
    """
    if form not in FORMATS:
        raise ValueError(f"format={form!r}: choose one of {', '.join(FORMATS)}")
    weights = name_arrays(params, config, form)
    if form == "hf":
        flat = _flatten(params)
        hf_config = hf_config_of_convnet(flat) if family_of(flat) else _hf_config(flat, config, image_size=image_size)
        pixels = pixels or PixelFormat(channels=config.channels)
        images = describe_images(config.image_mean, config.image_std, pixels)
        output.mkdir(parents=True, exist_ok=True)
        for name, content in ((HF_CONFIG, hf_config), (HF_PREPROCESSOR, images)):
            atomic_write(output / name, (json.dumps(content, indent=2) + "\n").encode())
        output = output / HF_WEIGHTS
    write_arrays(weights, output)
    return output


def name_arrays(params: Params, config: BackboneConfig, form: str) -> dict[str, np.ndarray]:
    """Returns the arrays of a backbone under the names of a library; arguments and errors as `export_backbone`."""
    flat = _flatten(params)
    if family := family_of(flat):
        stem = flat[STEM].shape[-1]
        if family == "resnet" and form != "hf" and stem != _RESNET_STEM:
            raise ValueError(
                f"width={config.width}: ResNets of torchvision and timm begin with {_RESNET_STEM} features, "
                f"not {stem}; choose hf"
            )
        return write_convnet(flat, form)
    column = _choose_column(flat, config, form)
    weights = write_vit(flat, column, channels=config.channels) | _extra_arrays(flat, config, column)
    return _adapt_to_timm(weights, config) if form == "timm" else weights


def _flatten(params: Params) -> _Flat:
    return {path: np.asarray(array) for path, array in flatten_tree(params).items()}


def write_arrays(contents: Mapping[str, Any], file: Path) -> None:
    """Writes arrays, or dictionaries of them, whole or not at all.

    Args:
        contents: by name.
        file: .safetensors (arrays alone), .pth or .pt.

    Raises:
        ValueError: for another suffix, or a .pth file where PyTorch is not installed.
    """
    if file.suffix not in (".safetensors", ".pth", ".pt"):
        raise ValueError(f"{file}: choose a name that ends in .safetensors or .pth")
    save = _save_safetensors if file.suffix == ".safetensors" else _torch_saver(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(file.name + ".partial")
    save(contents, partial)
    partial.replace(file)


def _save_safetensors(contents: Mapping[str, Any], file: Path) -> None:
    # Hugging Face's and timm's loaders ask for this.
    safetensors.numpy.save_file(dict(contents), file, metadata={"format": "pt"})


def _torch_saver(file: Path) -> Any:
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError(f"{file}: .pth needs PyTorch: pip install 'croc_jax[torch]'; or choose .safetensors") from None

    def to_tensors(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: to_tensors(inner) for name, inner in value.items()}
        return torch.from_numpy(np.array(value)) if isinstance(value, np.ndarray) else value

    return lambda contents, path: torch.save(to_tensors(contents), path)


def _choose_column(flat: _Flat, config: BackboneConfig, form: str) -> str:
    """Returns the column of `param_mapping_vit.COLUMNS`; raises ValueError if the library has no such model."""
    rope = config.positions == "rope"
    if form == "timm":
        if rope and any(key.any() for key in _key_biases(flat).values()):
            raise ValueError("positions='rope', biases of keys that are not 0: timm has none; choose official or hf")
        return "timm_dinov3" if rope else "timm"
    column = _hf_column(config) if form == "hf" else "official_dinov3" if rope else "official"
    hidden = _hidden(flat)
    if is_gated(flat) and column in ("official", "official_dinov3", "hf_dinov2") and hidden % _GATED_MULTIPLE:
        raise ValueError(
            f"mlp='swiglu', mlp_ratio={config.mlp_ratio:g}: {form} has a multiple of {_GATED_MULTIPLE} "
            f"hidden features, not {hidden}; choose timm"
        )
    if column == "hf_dinov2" and _integer_ratio(flat) is None:
        raise ValueError(
            f"mlp_ratio={config.mlp_ratio:g}: Hugging Face's DINOv2 takes integers (2/3 of one "
            "if the MLP is gated); choose official or timm"
        )
    return column


def _is_dinov2(config: BackboneConfig) -> bool:
    """Returns whether DINOv2 has what CrOC and DINO have not, among transformers with learned positions."""
    return bool(config.layer_scale or config.num_registers or config.mlp == "swiglu")


def _hf_column(config: BackboneConfig) -> str:
    if config.layer_scale:
        return "hf_dinov3" if config.positions == "rope" else "hf_dinov2"
    settings: dict[str, Any] = {"positions": "learned", "mlp": "gelu", "num_registers": 0}
    for name, only in settings.items():
        if (value := getattr(config, name)) != only:
            raise ValueError(
                f"{name}={value!r}, layer_scale=False: Hugging Face has no such model; choose official or timm"
            )
    return "hf_vit"


def _extra_arrays(flat: _Flat, config: BackboneConfig, column: str) -> dict[str, np.ndarray]:
    """Returns what the model of a library holds beside our arrays, without effect on any feature, by name."""
    width = flat["cls_token"].shape[-1]
    if column == "official_dinov3":
        return {"mask_token": _zeros(1, width), **_dinov3_buffers(flat, config)}
    if column == "official" and _is_dinov2(config):
        return {"mask_token": _zeros(1, width)}
    if column == "hf_dinov2":
        return {"embeddings.mask_token": _zeros(1, width)}
    if column == "hf_dinov3":
        registers = {} if config.num_registers else {"embeddings.register_tokens": _zeros(1, 0, width)}
        return {"embeddings.mask_token": _zeros(1, 1, width), **registers}
    return {}


def _dinov3_buffers(flat: _Flat, config: BackboneConfig) -> dict[str, np.ndarray]:
    """Returns the periods of the rotations, and what the biases of queries, keys and values are multiplied by."""
    module = _module(config)
    count = module.width // module.num_heads // 4
    buffers = {"rope_embed.periods": (ROPE_BASE ** (np.arange(count) / count)).astype(np.float32)}
    for block, keys in _key_biases(flat).items():
        # The official mask has zeros for keys; ours may have learned something.
        ones = np.ones_like(keys)
        buffers[f"blocks.{block}.attn.qkv.bias_mask"] = np.concatenate([ones, ones * keys.any(), ones])
    return buffers


def _adapt_to_timm(weights: dict[str, np.ndarray], config: BackboneConfig) -> dict[str, np.ndarray]:
    """Returns arrays under timm's names as timm's models split and join them."""
    if config.positions == "rope":
        biases = [name for name in weights if name.endswith((".q_bias", ".v_bias"))]
        # There is a model with these biases, and one without.
        drop = [] if any(weights[name].any() for name in biases) else biases
        return {name: array for name, array in weights.items() if name not in drop}
    if not config.num_registers:
        return weights
    # Transformers with registers have no position for [CLS]: it is added to the token.
    position = weights["pos_embed"]
    return weights | {"cls_token": weights["cls_token"] + position[:, :1], "pos_embed": position[:, 1:].copy()}


def _hf_config(flat: _Flat, config: BackboneConfig, *, image_size: int) -> dict[str, Any]:
    """Returns the config.json that Hugging Face's AutoModel needs for a transformer."""
    module, gated, column = _module(config), config.mlp == "swiglu", _hf_column(config)
    kind, name, extra = "vit", "ViTModel", {"intermediate_size": _hidden(flat)}
    if column == "hf_dinov2":
        registers = config.num_registers
        kind, name = ("dinov2_with_registers", "Dinov2WithRegistersModel") if registers else ("dinov2", "Dinov2Model")
        extra = {"mlp_ratio": _integer_ratio(flat), "use_swiglu_ffn": gated}
        extra |= {"num_register_tokens": registers} if registers else {}
    if column == "hf_dinov3":
        kind, name = "dinov3_vit", "DINOv3ViTModel"
        extra |= {"use_gated_mlp": gated, "hidden_act": "silu" if gated else "gelu", "key_bias": True}
        extra |= {"num_register_tokens": config.num_registers, "rope_theta": ROPE_BASE}
    return {
        "architectures": [name],
        "model_type": kind,
        "hidden_size": module.width,
        "num_hidden_layers": module.depth,
        "num_attention_heads": module.num_heads,
        "patch_size": config.patch_size,
        "num_channels": config.channels,
        "image_size": image_size,
        "layer_norm_eps": config.norm_epsilon,
        "hidden_act": "gelu",
        "qkv_bias": True,
        **extra,
    }


def _module(config: BackboneConfig) -> VisionTransformer:
    # The image size matters to none of the settings that are read here.
    module = make_backbone(config, image_size=config.patch_size)
    assert isinstance(module, VisionTransformer)
    return module


def _key_biases(flat: _Flat) -> dict[str, np.ndarray]:
    """Returns the biases of keys by the number of their block."""
    end = "/attention/qkv/bias"
    found = {path.removesuffix(end): bias for path, bias in flat.items() if path.endswith(end)}
    return {block.removeprefix("block_"): np.split(bias, 3)[1] for block, bias in found.items()}


def _hidden(flat: _Flat) -> int:
    return flat["block_0/mlp_2/kernel"].shape[0]


def _integer_ratio(flat: _Flat) -> int | None:
    """Returns the number from which Hugging Face's DINOv2 computes as many hidden features as there are, if any."""
    hidden, width = flat["block_0/mlp_2/kernel"].shape

    def computed(ratio: int) -> int:
        if not is_gated(flat):
            return width * ratio
        return math.ceil(int(width * ratio * 2 / 3) / _GATED_MULTIPLE) * _GATED_MULTIPLE

    return next((ratio for ratio in range(1, _LARGEST_RATIO) if computed(ratio) == hidden), None)


def _zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)
