"""Backbones by name."""

import jax
import jax.numpy as jnp

from croc_jax.models.attention import choose_attention
from croc_jax.models.config import BackboneConfig
from croc_jax.models.position_embedding import RESIZINGS
from croc_jax.models.vit import VisionTransformer, patch_grid

# width, depth, heads
VARIANTS = {
    "vit_tiny": (192, 12, 3),
    "vit_small": (384, 12, 6),
    "vit_base": (768, 12, 12),
    "vit_large": (1024, 24, 16),
    "vit_giant": (1536, 40, 24),
}
CHOICES = {"mlp": ("gelu", "swiglu"), "positions": ("learned", "rope"), "position_resizing": RESIZINGS}


def make_backbone(config: BackboneConfig, *, image_size: int) -> VisionTransformer:
    """Returns the module that a config describes.

    Args:
        config: variant and overrides.
        image_size: side of the square images that the position embedding is learned for.

    Raises:
        ValueError: for an unknown variant, type or attention, heads that do not divide the
            width, or an image that whole patches do not tile.
    """
    if config.variant not in VARIANTS:
        raise ValueError(f"variant={config.variant!r}: choose one of {', '.join(VARIANTS)}")
    width, depth, num_heads = VARIANTS[config.variant]
    width, depth, num_heads = config.width or width, config.depth or depth, config.num_heads or num_heads
    if width % num_heads:
        raise ValueError(f"width={width}: num_heads={num_heads} must divide it")
    if config.positions == "rope" and width // num_heads % 4:
        raise ValueError(f"width={width}, num_heads={num_heads}: rotations need heads of a multiple of 4 features")
    for name, known in CHOICES.items():
        if getattr(config, name) not in known:
            raise ValueError(f"{name}={getattr(config, name)!r}: choose one of {', '.join(known)}")
    dtype = compute_dtype(config.dtype)
    return VisionTransformer(
        patch_size=config.patch_size,
        grid_size=patch_grid((image_size, image_size), config.patch_size)[0],
        width=width,
        depth=depth,
        num_heads=num_heads,
        mlp_ratio=config.mlp_ratio,
        drop_path_rate=config.drop_path_rate,
        remat=config.remat,
        dtype=dtype,
        attention=choose_attention(config.attention, dtype),
        num_registers=config.num_registers,
        layer_scale=config.layer_scale,
        mlp=config.mlp,
        positions=config.positions,
        position_resizing=config.position_resizing,
        norm_epsilon=config.norm_epsilon,
    )


def compute_dtype(name: str) -> jnp.dtype:
    """Resolves "auto" to bfloat16 on accelerators and float32 on CPU, where bfloat16 is slow.

    Raises:
        ValueError: for a name other than "auto", "float32" and "bfloat16".
    """
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    if name not in ("float32", "bfloat16"):
        raise ValueError(f"dtype={name!r}: choose 'auto', 'float32' or 'bfloat16'")
    return jnp.dtype(name)
