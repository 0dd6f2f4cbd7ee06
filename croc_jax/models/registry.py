"""Backbones by name."""

import dataclasses
from typing import Any

import jax

from croc_jax.models.config import BackboneConfig
from croc_jax.models.convnext import ConvNeXt
from croc_jax.models.devices import choose_execution, compute_dtype
from croc_jax.models.features import Backbone
from croc_jax.models.patches import patch_grid
from croc_jax.models.position_embedding import RESIZINGS
from croc_jax.models.resnet import ResNet
from croc_jax.models.vit import VisionTransformer
from croc_jax.pixel_format import PixelFormat

# width, depth, heads
VARIANTS = {
    "vit_tiny": (192, 12, 3),
    "vit_small": (384, 12, 6),
    "vit_base": (768, 12, 12),
    "vit_large": (1024, 24, 16),
    "vit_giant": (1536, 40, 24),
}
# width, blocks of each stage
CONVOLUTIONAL = {
    "resnet_50": (2048, (3, 4, 6, 3)),
    "convnext_tiny": (768, (3, 3, 9, 3)),
    "convnext_small": (768, (3, 3, 27, 3)),
    "convnext_base": (1024, (3, 3, 27, 3)),
    "convnext_large": (1536, (3, 3, 27, 3)),
}
CHOICES = {"mlp": ("gelu", "swiglu"), "positions": ("learned", "rope"), "position_resizing": RESIZINGS}
CONVOLUTIONAL_PATCHES = (8, 16, 32)
# Fields that apply to a convolutional network.
_CONVOLUTIONAL_FIELDS = {
    "variant", "patch_size", "width", "stages", "drop_path_rate", "remat", "dtype", "norm_epsilon",
    "image_mean", "image_std",
}  # fmt: skip


def make_backbone(
    config: BackboneConfig, *, image_size: int, pixels: PixelFormat | None = None, device: Any = None
) -> Backbone:
    """Returns the module that a config describes.

    Args:
        config: variant and overrides of its fields.
        image_size: side of the square images that a position embedding is learned for, unless the config says.
        pixels: format of the images; by default 8-bit ones of as many channels as the config has means.
        device: the device whose kind decides what "auto" means; by default, the first of the default backend.

    Raises:
        ValueError: for an unknown variant, type or attention, pixels of other channels than the config, heads that do
            not divide the width, a field that the variant has no use for, or an image that whole patches do not tile.
    """
    device = jax.devices()[0] if device is None else device
    pixels = pixels or PixelFormat(channels=config.channels)
    if pixels.channels != config.channels:
        raise ValueError(
            f"image_mean={config.image_mean}: give {pixels.channels} numbers, one a channel, and image_std likewise"
        )
    if config.variant in VARIANTS:
        return _make_transformer(config, image_size=image_size, pixels=pixels, device=device)
    if config.variant in CONVOLUTIONAL:
        return _make_convolutional(config, image_size=image_size, pixels=pixels, device=device)
    known = ", ".join((*VARIANTS, *CONVOLUTIONAL))
    raise ValueError(f"variant={config.variant!r}: choose one of {known}")


def _make_transformer(
    config: BackboneConfig, *, image_size: int, pixels: PixelFormat, device: Any
) -> VisionTransformer:
    if config.stages is not None:
        raise ValueError(f"stages={config.stages}: {config.variant} has none; set depth")
    width, depth, num_heads = VARIANTS[config.variant]
    width, depth, num_heads = config.width or width, config.depth or depth, config.num_heads or num_heads
    if width % num_heads:
        raise ValueError(f"width={width}: num_heads={num_heads} must divide it")
    if config.positions == "rope" and width // num_heads % 4:
        raise ValueError(f"width={width}, num_heads={num_heads}: rotations need heads of a multiple of 4 features")
    for name, known in CHOICES.items():
        if getattr(config, name) not in known:
            raise ValueError(f"{name}={getattr(config, name)!r}: choose one of {', '.join(known)}")
    learned_size = config.embedded_size(image_size)
    if (size := config.position_size) is not None and (size < 1 or size % config.patch_size):
        raise ValueError(f"position_size={size}: whole patches of {config.patch_size} pixels must tile it")
    if size is not None and config.positions == "rope":
        raise ValueError(f"position_size={size}: rotations learn no places; leave it out")
    execution = choose_execution(
        dtype=config.dtype,
        attention=config.attention,
        remat=config.remat,
        head_width=width // num_heads,
        device=device,
    )
    return VisionTransformer(
        patch_size=config.patch_size,
        grid_size=patch_grid((learned_size, learned_size), config.patch_size)[0],
        width=width,
        depth=depth,
        num_heads=num_heads,
        mlp_ratio=config.mlp_ratio,
        drop_path_rate=config.drop_path_rate,
        **execution._asdict(),
        num_registers=config.num_registers,
        layer_scale=config.layer_scale,
        mlp=config.mlp,
        positions=config.positions,
        position_resizing=config.position_resizing,
        norm_epsilon=config.norm_epsilon,
        image_mean=config.image_mean,
        image_std=config.image_std,
        pixels=pixels,
    )


def _make_convolutional(
    config: BackboneConfig, *, image_size: int, pixels: PixelFormat, device: Any
) -> ResNet | ConvNeXt:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name not in _CONVOLUTIONAL_FIELDS and value != field.default:
            raise ValueError(
                f"{field.name}={value!r}: {config.variant} has no use for it; leave it at {field.default!r}"
            )
    if config.patch_size not in CONVOLUTIONAL_PATCHES:
        known = ", ".join(map(str, CONVOLUTIONAL_PATCHES))
        raise ValueError(f"patch_size={config.patch_size}: the tokens of {config.variant} lie {known} pixels apart")
    patch_grid((image_size, image_size), config.patch_size)
    width, stages = CONVOLUTIONAL[config.variant]
    width, stages = config.width or width, config.stages or stages
    if len(stages) != 4 or min(stages) < 1:
        raise ValueError(f"stages={stages}: four numbers of blocks, of one or more")
    resnet = config.variant.startswith("resnet")
    parts = 32 if resnet else 8
    if width % parts:
        raise ValueError(f"width={width}: must be a multiple of {parts} for {config.variant}")
    settings: Any = {"patch_size": config.patch_size, "width": width, "stages": stages, "remat": config.remat}
    settings |= {"image_mean": config.image_mean, "image_std": config.image_std, "pixels": pixels}
    dtype = compute_dtype(config.dtype, device)
    if resnet:
        return ResNet(**settings, dtype=dtype)
    return ConvNeXt(**settings, dtype=dtype, drop_path_rate=config.drop_path_rate, norm_epsilon=config.norm_epsilon)
