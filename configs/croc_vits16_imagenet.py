r"""CrOC, ViT-S/16 on ImageNet: the paper's setting (1.28 M images, 300 epochs, batch 1024).

    python launch/pretrain.py --config=configs/croc_vits16_imagenet.py --workdir=runs/croc_imagenet \
        --config.data.sources=imagenet:path/to/imagenet

Keys and a weaker pull of position, unlike on COCO. The peak learning rate scales with the batch.
"""

from ml_collections import ConfigDict

from croc_jax.training.config_dict import recipe_config


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = recipe_config()
    config.data.sources = ("imagenet:data/imagenet",)
    config.backbone.variant = "vit_small"
    config.backbone.patch_size = 16
    config.clustering.k_start = 12
    config.clustering.k_max = 12
    config.clustering.lambda_pos = 3.0
    config.objective.tokens = "keys"
    config.objective.teacher_temp = 0.07
    config.objective.warmup_teacher_temp = 0.04
    config.objective.warmup_teacher_temp_epochs = 30
    config.optimizer.base_lr = 5e-4
    config.schedule.epochs = 300
    config.schedule.batch_size = 1024
    return config
