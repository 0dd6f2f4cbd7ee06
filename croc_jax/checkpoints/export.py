"""Weights out: under the names of the official code, of timm, or of Hugging Face, and read back at once."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from croc_jax.checkpoints.architectures import (
    ExportError,
    adapt_to_timm,
    choose_family,
    describe_for_hf,
    extra_arrays,
)
from croc_jax.checkpoints.convnet_mapping import describe_convolutional, is_convolutional, write_convolutional
from croc_jax.checkpoints.vit_mapping import Params, write_names
from croc_jax.checkpoints.weight_files import HF_CONFIG, HF_WEIGHTS
from croc_jax.models import BackboneConfig

# For people; the tables know Hugging Face's three families apart.
FORMATS = ("official", "timm", "hf")
# Of these networks wherever they have no setting for it.
_RESNET_STEM, _CONVNEXT_EPSILON = 64, 1e-6


def export_backbone(params: Params, config: BackboneConfig, *, image_size: int, output: Path, form: str) -> Path:
    """Writes a backbone; returns the file.

    Args:
        params: of the backbone.
        config: of the backbone.
        image_size: that its position embedding was learned for.
        output: a .safetensors file; a .pth file, which needs PyTorch; or, for "hf", a folder.
        form: "official" (CrOC, DINO, DINOv2, DINOv3), "timm" or "hf".

    Raises:
        ExportError: for another format or kind of file, or an architecture that the library does not have.
    """
    if form not in FORMATS:
        raise ExportError(f"format={form!r}: choose one of {', '.join(FORMATS)}")
    if is_convolutional(params):
        weights, described = _rename_convolutional(params, config, form)
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
    family = choose_family(params, config, form)
    weights = write_names(params, family) | extra_arrays(params, config, family)
    if form == "timm":
        weights = adapt_to_timm(weights, config)
    return weights, describe_for_hf(params, config, family, image_size=image_size) if form == "hf" else {}


def _rename_convolutional(
    params: Params, config: BackboneConfig, form: str
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Returns the same for ResNet and ConvNeXt."""
    stem = params["stem"]["kernel"].shape[-1]
    if config.variant.startswith("resnet") and form != "hf" and stem != _RESNET_STEM:
        raise ExportError(
            f"width={config.width}: ResNets of torchvision and timm begin with {_RESNET_STEM} features, "
            f"not {stem}; choose hf"
        )
    if config.variant.startswith("convnext") and form != "timm" and config.norm_epsilon != _CONVNEXT_EPSILON:
        raise ExportError(
            f"norm_epsilon={config.norm_epsilon:g}: ConvNeXt has {_CONVNEXT_EPSILON:g} there, "
            "whatever one sets; choose timm, and its norm_eps"
        )
    return write_convolutional(params, form), describe_convolutional(params)


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
        # Hugging Face's and timm's loaders ask for this.
        safetensors.numpy.save_file(dict(contents), partial, metadata={"format": "pt"})
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
