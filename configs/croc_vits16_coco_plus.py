r"""CrOC, ViT-S/16 on COCO+: labeled and unlabeled images of 2017 (241 k), as in the paper, 300 epochs.

    python launch/pretrain.py --config=configs/croc_vits16_coco_plus.py --workdir=runs/croc_coco_plus \
        --config.data.sources=coco+:path/to/coco

The images are all that differs from croc_vits16_coco.
"""

from ml_collections import ConfigDict

from croc_jax.training.config_dict import recipe_config


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = recipe_config()
    config.data.sources = ("coco+:data/coco",)
    return config
