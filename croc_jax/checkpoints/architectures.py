"""Which model of a library a transformer of ours is, or why none, and what that model holds beside our arrays."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from croc_jax.checkpoints.vit_mapping import Params, flatten, is_gated
from croc_jax.models import BackboneConfig, VisionTransformer, make_backbone
from croc_jax.models.position_embedding import ROPE_BASE

# Of gated MLPs in the official code, whatever ratio it is given; Hugging Face's DINOv2 follows it.
_GATED_MULTIPLE = 8
_LARGEST_RATIO = 64


class ExportError(ValueError):
    """Weights cannot be written in a format; the message says why and what to do."""


def choose_family(params: Params, config: BackboneConfig, form: str) -> str:
    """Returns the column of the table of names, see `croc_jax.checkpoints.vit_mapping.COLUMNS`.

    Args:
        params: of a transformer.
        config: of the transformer.
        form: "official", "timm" or "hf".

    Raises:
        ExportError: if the library has no such model.
    """
    flat, rope = flatten(params), config.positions == "rope"
    if form == "timm":
        if rope and any(key.any() for key in _key_biases(flat).values()):
            raise ExportError("positions='rope', biases of keys that are not 0: timm has none; choose official or hf")
        return "timm_dinov3" if rope else "timm"
    family = _hf_family(config) if form == "hf" else _official_family(config)
    hidden = _hidden(flat)
    if is_gated(flat) and family in ("official", "official_dinov3", "hf_dinov2") and hidden % _GATED_MULTIPLE:
        raise ExportError(
            f"mlp='swiglu', mlp_ratio={config.mlp_ratio:g}: {form} has a multiple of {_GATED_MULTIPLE} "
            f"hidden features, not {hidden}; choose timm"
        )
    if family == "hf_dinov2" and _whole_ratio(flat) is None:
        raise ExportError(
            f"mlp_ratio={config.mlp_ratio:g}: Hugging Face's DINOv2 takes whole numbers (2/3 of one "
            "if the MLP is gated); choose official or timm"
        )
    return family


def _official_family(config: BackboneConfig) -> str:
    rope = config.positions == "rope"
    known = (1e-5, 1e-6) if rope else (1e-6,)
    # The modules of CrOC and DINO take any.
    if (rope or _is_dinov2(config)) and config.norm_epsilon not in known:
        numbers = " or ".join(f"{epsilon:g}" for epsilon in known)
        raise ExportError(
            f"norm_epsilon={config.norm_epsilon:g}: the official code has {numbers} there; choose timm or hf"
        )
    return "official_dinov3" if rope else "official"


def _is_dinov2(config: BackboneConfig) -> bool:
    """Returns whether DINOv2 has what CrOC and DINO have not, among transformers with learned positions."""
    return bool(config.layer_scale or config.num_registers or config.mlp == "swiglu")


def _hf_family(config: BackboneConfig) -> str:
    if config.layer_scale:
        return "hf_dinov3" if config.positions == "rope" else "hf_dinov2"
    settings: dict[str, Any] = {"positions": "learned", "mlp": "gelu", "num_registers": 0}
    for name, only in settings.items():
        if (value := getattr(config, name)) != only:
            raise ExportError(
                f"{name}={value!r}, layer_scale=False: Hugging Face has no such model; choose official or timm"
            )
    return "hf_vit"


def extra_arrays(params: Params, config: BackboneConfig, family: str) -> dict[str, np.ndarray]:
    """Returns what the model of a library holds beside our arrays, without effect on any feature, by name.

    Args:
        params: of a transformer.
        config: of the transformer.
        family: see `choose_family`.
    """
    width = params["cls_token"].shape[-1]
    if family == "official_dinov3":
        return {"mask_token": _zeros(1, width), **_dinov3_buffers(params, config)}
    if family == "official" and _is_dinov2(config):
        return {"mask_token": _zeros(1, width)}
    if family == "hf_dinov2":
        return {"embeddings.mask_token": _zeros(1, width)}
    if family == "hf_dinov3":
        registers = {} if config.num_registers else {"embeddings.register_tokens": _zeros(1, 0, width)}
        return {"embeddings.mask_token": _zeros(1, 1, width), **registers}
    return {}


def _dinov3_buffers(params: Params, config: BackboneConfig) -> dict[str, np.ndarray]:
    """Returns the periods of the rotations, and what the biases of queries, keys and values are multiplied by."""
    module = _module(config)
    count = module.width // module.num_heads // 4
    buffers = {"rope_embed.periods": (ROPE_BASE ** (np.arange(count) / count)).astype(np.float32)}
    for block, keys in _key_biases(flatten(params)).items():
        # Nothing for keys is the official mask; ours may have learned something.
        others = np.ones_like(keys)
        buffers[f"blocks.{block}.attn.qkv.bias_mask"] = np.concatenate([others, others * keys.any(), others])
    return buffers


def adapt_to_timm(weights: dict[str, np.ndarray], config: BackboneConfig) -> dict[str, np.ndarray]:
    """Returns the arrays, which have timm's names already, as timm's models split and join them."""
    if config.positions == "rope":
        biases = [name for name in weights if name.endswith((".q_bias", ".v_bias"))]
        # There is a model with these biases, and one without.
        return weights if any(weights[name].any() for name in biases) else _without(weights, biases)
    if not config.num_registers:
        return weights
    # Transformers with registers have no place for [CLS]: it is added to the token.
    position = weights["pos_embed"]
    return weights | {"cls_token": weights["cls_token"] + position[:, :1], "pos_embed": position[:, 1:].copy()}


def _without(weights: Mapping[str, np.ndarray], names: Sequence[str]) -> dict[str, np.ndarray]:
    return {name: array for name, array in weights.items() if name not in names}


def describe_for_hf(params: Params, config: BackboneConfig, family: str, *, image_size: int) -> dict[str, Any]:
    """Returns what Hugging Face's AutoModel needs to know of a transformer.

    Args:
        params: of the transformer.
        config: of the transformer.
        family: see `choose_family`.
        image_size: that its position embedding was learned for.
    """
    flat, module, gated = flatten(params), _module(config), config.mlp == "swiglu"
    kind, name, extra = "vit", "ViTModel", {"intermediate_size": _hidden(flat)}
    if family == "hf_dinov2":
        registers = config.num_registers
        kind, name = ("dinov2_with_registers", "Dinov2WithRegistersModel") if registers else ("dinov2", "Dinov2Model")
        extra = {"mlp_ratio": _whole_ratio(flat), "use_swiglu_ffn": gated}
        extra |= {"num_register_tokens": registers} if registers else {}
    if family == "hf_dinov3":
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
        "image_size": image_size,
        "layer_norm_eps": config.norm_epsilon,
        "hidden_act": "gelu",
        "qkv_bias": True,
        **extra,
    }


def _module(config: BackboneConfig) -> VisionTransformer:
    # The size of images says nothing of the settings that are read here.
    module = make_backbone(config, image_size=config.patch_size)
    assert isinstance(module, VisionTransformer), "others have another description"
    return module


def _key_biases(flat: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the biases of keys by block."""
    end = "/attention/qkv/bias"
    found = {path.removesuffix(end): bias for path, bias in flat.items() if path.endswith(end)}
    return {block.removeprefix("block_"): np.split(bias, 3)[1] for block, bias in found.items()}


def _hidden(flat: Mapping[str, np.ndarray]) -> int:
    return flat["block_0/mlp_2/kernel"].shape[0]


def _whole_ratio(flat: Mapping[str, np.ndarray]) -> int | None:
    """Returns the number from which Hugging Face's DINOv2 computes as many hidden features as there are, if any."""
    hidden, width = flat["block_0/mlp_2/kernel"].shape

    def computed(ratio: int) -> int:
        if not is_gated(flat):
            return width * ratio
        return math.ceil(int(width * ratio * 2 / 3) / _GATED_MULTIPLE) * _GATED_MULTIPLE

    return next((ratio for ratio in range(1, _LARGEST_RATIO) if computed(ratio) == hidden), None)


def _zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)
