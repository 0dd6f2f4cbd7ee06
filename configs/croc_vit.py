r"""CrOC, a ViT of any size on COCO: the paper's schedule, Ti to g, with or without registers.

    python launch/pretrain.py --config=configs/croc_vit.py:vit_base --workdir=runs/croc_vit_base \
        --config.data.sources=coco:path/to/coco

After the colon: vit_tiny, vit_small (the paper's), vit_base, vit_large, vit_giant, or any of them with _registers.
L and g recompute their blocks in the backward pass; a state that fits no device is split over as few devices
as hold it (--config.runtime.mesh.fsdp=8 says how many). g is DINOv2's: patches of 14 pixels, SwiGLU, layer scale.
The paper has numbers for vit_small alone.
"""

from ml_collections import ConfigDict

from croc_jax.training.config_dict import recipe_config

# Register tokens (Darcet et al., 2024) take what would else show up in the patch tokens of large models.
REGISTERS = {"backbone.num_registers": 4, "backbone.position_resizing": "antialias"}
TINY = {"backbone.variant": "vit_tiny"}
SMALL = {"backbone.variant": "vit_small"}
BASE = {"backbone.variant": "vit_base"}
# Deeper networks need more stochastic depth.
LARGE = {"backbone.variant": "vit_large", "backbone.drop_path_rate": 0.3, "backbone.remat": True}
GIANT = {
    "backbone.variant": "vit_giant",
    "backbone.patch_size": 14,
    "backbone.drop_path_rate": 0.4,
    "backbone.remat": True,
    "backbone.layer_scale": True,
    "backbone.mlp": "swiglu",
    # Hidden features: 4096.
    "backbone.mlp_ratio": 8 / 3,
}
VARIANTS = {
    "vit_tiny": TINY,
    "vit_tiny_registers": TINY | REGISTERS,
    "vit_small": SMALL,
    "vit_small_registers": SMALL | REGISTERS,
    "vit_base": BASE,
    "vit_base_registers": BASE | REGISTERS,
    "vit_large": LARGE,
    "vit_large_registers": LARGE | REGISTERS,
    "vit_giant": GIANT,
    "vit_giant_registers": GIANT | REGISTERS,
}


def get_config(variant: str = "vit_small") -> ConfigDict:
    """Returns the recipe of a variant."""
    if variant not in VARIANTS:
        raise ValueError(f"variant={variant!r}: choose one of {', '.join(VARIANTS)}")
    config = recipe_config()
    config.data.sources = ("coco:data/coco",)
    config.update_from_flattened_dict(VARIANTS[variant])
    return config
