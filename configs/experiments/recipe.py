r"""The recipe that experiments start from: a small ViT for CPU cores, or a ViT-S for an accelerator.

    python launch/pretrain.py --config=configs/experiments/recipe.py:small --workdir=runs/small \
        --config.data.folders=path/to/photos

After the colon: small, quick or gpu.
"""

from ml_collections import ConfigDict

from croc_jax.training.config_dict import recipe_config

# For two cores, about 10,000 photographs and half an hour.
SMALL = {
    # Patches of 16 show more of an image for the same time than those of 8 in crops of 64 pixels.
    "data.views.crop_size": 128,
    "data.views.scale": (0.2, 0.9),
    "backbone.variant": "vit_tiny",
    "backbone.patch_size": 16,
    "backbone.width": 128,
    "backbone.depth": 4,
    "backbone.num_heads": 4,
    "backbone.drop_path_rate": 0.0,
    "head.hidden_dim": 256,
    "head.bottleneck_dim": 256,
    "head.num_prototypes": 512,
    "head.num_prototypes_dense": 256,
    "schedule.epochs": 8,
    "schedule.batch_size": 16,
    # With few images, a high teacher temperature collapses early.
    "objective.warmup_teacher_temp": 0.025,
    "objective.teacher_temp": 0.025,
    "objective.warmup_teacher_temp_epochs": 0,
    # Few steps need a higher learning rate and a faster teacher, and none to spare for frozen last layers.
    "optimizer.base_lr": 1.6e-2,
    "optimizer.warmup_epochs": 1,
    "optimizer.freeze_last_layer_epochs": 0,
    "optimizer.weight_decay_end": 0.1,
    "optimizer.teacher_momentum": 0.99,
    # The table has scores with labels.
    "evaluation.unlabeled": False,
    "evaluation.pictures": 0,
    "runtime.log_every_steps": 10,
    "runtime.checkpoint_every_minutes": 2.0,
}
# For comparing settings: most of what SMALL gains in linear scores, in a fifth of the time.
QUICK = SMALL | {"data.views.crop_size": 96, "schedule.epochs": 3}
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
    "objective.warmup_teacher_temp_epochs": 8,
    "optimizer.base_lr": 2e-3,
    "optimizer.warmup_epochs": 3,
}
VARIANTS = {"small": SMALL, "quick": QUICK, "gpu": GPU}


def get_config(variant: str = "small") -> ConfigDict:
    """Returns the recipe of a variant."""
    if variant not in VARIANTS:
        raise ValueError(f"variant={variant!r}: choose one of {', '.join(VARIANTS)}")
    config = recipe_config()
    config.update_from_flattened_dict(VARIANTS[variant])
    return config
