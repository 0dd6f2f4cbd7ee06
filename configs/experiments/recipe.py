r"""The recipe that experiments start from: a small ViT for CPU cores, or a ViT-S for an accelerator.

    python launch/pretrain.py --config=configs/experiments/recipe.py:small --workdir=runs/small \
        --config.data.folders=path/to/photos

After the colon: small or gpu.
"""

from ml_collections import ConfigDict

from croc_jax.training.config_dict import recipe_config

# For two cores, about 10,000 photographs and half an hour.
SMALL = {
    "data.views.crop_size": 64,
    "data.views.scale": (0.1, 0.6),
    "backbone.variant": "vit_tiny",
    "backbone.patch_size": 8,
    "backbone.width": 128,
    "backbone.depth": 4,
    "backbone.num_heads": 4,
    "backbone.drop_path_rate": 0.0,
    "head.hidden_dim": 256,
    "head.bottleneck_dim": 64,
    "head.num_prototypes": 512,
    "head.num_prototypes_dense": 256,
    "schedule.epochs": 8,
    "schedule.batch_size": 32,
    # With few images, a high teacher temperature collapses early.
    "objective.warmup_teacher_temp": 0.02,
    "objective.teacher_temp": 0.025,
    "objective.warmup_teacher_temp_epochs": 3,
    # Few steps need a higher learning rate and a faster teacher.
    "optimizer.base_lr": 8e-3,
    "optimizer.warmup_epochs": 1,
    "optimizer.weight_decay_end": 0.1,
    "optimizer.teacher_momentum": 0.98,
    # The table has scores with labels.
    "evaluation.unlabeled": False,
    "runtime.log_every_steps": 10,
    "runtime.checkpoint_every_minutes": 2.0,
}
# The same objective for a ViT-S/16 on crops of 128 pixels.
GPU = SMALL | {
    "data.views.crop_size": 128,
    "backbone.variant": "vit_small",
    "backbone.patch_size": 16,
    "backbone.width": 384,
    "backbone.depth": 12,
    "backbone.num_heads": 6,
    "backbone.drop_path_rate": 0.1,
    "head.hidden_dim": 1024,
    "head.bottleneck_dim": 256,
    "head.num_prototypes": 4096,
    "head.num_prototypes_dense": 2048,
    "schedule.epochs": 24,
    "schedule.batch_size": 256,
    "objective.warmup_teacher_temp_epochs": 8,
    "optimizer.base_lr": 2e-3,
    "optimizer.warmup_epochs": 3,
}
VARIANTS = {"small": SMALL, "gpu": GPU}


def get_config(variant: str = "small") -> ConfigDict:
    """Returns the recipe of a variant."""
    if variant not in VARIANTS:
        raise ValueError(f"variant={variant!r}: choose one of {', '.join(VARIANTS)}")
    config = recipe_config()
    config.update_from_flattened_dict(VARIANTS[variant])
    return config
