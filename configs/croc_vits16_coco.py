r"""CrOC, ViT-S/16 on COCO: the paper's setting (118 k images, 300 epochs, batch 256).

    python launch/pretrain.py --config=configs/croc_vits16_coco.py --workdir=runs/croc_coco \
        --config.data.sources=coco:path/to/coco

It is the default of every field; configs of other runs change what differs from it.
"""

from ml_collections import ConfigDict

from croc_jax.training.config_dict import recipe_config


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = recipe_config()
    config.data.sources = ("coco:data/coco",)
    return config
