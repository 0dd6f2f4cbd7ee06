r"""CrOC, ConvNeXt-T on COCO: the paper's schedule on a convolutional network.

    python launch/pretrain.py --config=configs/croc_convnext_tiny_coco.py --workdir=runs/croc_convnext \
        --config.data.sources=coco:path/to/coco

Tokens are the last feature map, 14 x 14 for a crop of 224 pixels (a dilated last stage). It is clustered in six
groups of 128 features, as the paper's transformers are head by head. No published number belongs to this config.
"""

from ml_collections import ConfigDict

from croc_jax.training.config_dict import recipe_config


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = recipe_config()
    config.data.sources = ("coco:data/coco",)
    config.backbone.variant = "convnext_tiny"
    config.objective.tokens = "last"
    config.objective.token_groups = 6
    return config
