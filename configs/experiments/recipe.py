r"""The recipe that experiments start from: a preset for few images and a CPU core, or a ViT-S for an accelerator.

    python launch/pretrain.py --config=configs/experiments/recipe.py:small --workdir=runs/small \
        --config.data.folders=path/to/photos

After the colon: small, quick, few or gpu.
"""

from ml_collections import ConfigDict

from croc_jax.training.config_dict import recipe_config
from croc_jax.training.presets import PRESETS

COMMON = {
    # The table has scores with labels.
    "evaluation.unlabeled": False,
    "evaluation.pictures": 0,
    "runtime.log_every_steps": 10,
    "runtime.checkpoint_every_minutes": 2.0,
}
SMALL = PRESETS["10k"].values | COMMON
# For comparing settings: most of what SMALL gains in linear scores, in a fifth of the time.
QUICK = SMALL | {"data.views.crop_size": 96, "schedule.epochs": 3}
FEW = PRESETS["1k"].values | COMMON
# The same objective and crops for a ViT-S/16.
GPU = SMALL | {
    "backbone.variant": "vit_small",
    "backbone.width": 384,
    "backbone.depth": 12,
    "backbone.num_heads": 6,
    "backbone.drop_path_rate": 0.1,
    "head.hidden_dim": 1024,
    "head.num_prototypes": 4096,
    "head.num_prototypes_dense": 2048,
    "schedule.epochs": 24,
    "schedule.batch_size": 256,
    "optimizer.base_lr": 2e-3,
    "optimizer.warmup_epochs": 3,
}
VARIANTS = {"small": SMALL, "quick": QUICK, "few": FEW, "gpu": GPU}


def get_config(variant: str = "small") -> ConfigDict:
    """Returns the recipe of a variant."""
    if variant not in VARIANTS:
        raise ValueError(f"variant={variant!r}: choose one of {', '.join(VARIANTS)}")
    config = recipe_config()
    config.update_from_flattened_dict(VARIANTS[variant])
    return config
