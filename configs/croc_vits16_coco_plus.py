r"""CrOC, ViT-S/16 on COCO+: labeled and unlabeled images of 2017 (241 k), as in the paper, 300 epochs.

    python launch/pretrain.py --config=configs/croc_vits16_coco_plus.py --workdir=runs/croc_coco_plus \
        --config.data.sources=coco+:path/to/coco

The rest of the optimization is DINO's, which is the default of every field.
"""

from ml_collections import ConfigDict

from croc_jax.training.config_dict import recipe_config


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = recipe_config()
    config.data.sources = ("coco+:data/coco",)
    config.backbone.variant = "vit_small"
    config.backbone.patch_size = 16
    config.clustering.k_start = 12
    config.clustering.k_max = 12
    config.clustering.lambda_pos = 4.0
    config.objective.tokens = "values"
    config.objective.teacher_temp = 0.07
    config.objective.warmup_teacher_temp = 0.04
    config.objective.warmup_teacher_temp_epochs = 30
    config.optimizer.base_lr = 5e-4
    config.schedule.epochs = 300
    config.schedule.batch_size = 256
    return config
