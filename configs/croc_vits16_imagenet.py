r"""CrOC, ViT-S/16 on ImageNet: the paper's setting (1.28 M images, 300 epochs, batch 1024).

    python launch/pretrain.py --config=configs/croc_vits16_imagenet.py --workdir=runs/croc_imagenet \
        --config.data.sources=imagenet:path/to/imagenet

Keys and a smaller weight of position, unlike on COCO. The peak learning rate scales with the batch.
"""

from ml_collections import ConfigDict

from croc_jax.training.config_dict import recipe_config


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = recipe_config()
    config.data.sources = ("imagenet:data/imagenet",)
    config.clustering.lambda_pos = 3.0
    config.objective.tokens = "keys"
    config.schedule.batch_size = 1024
    return config
