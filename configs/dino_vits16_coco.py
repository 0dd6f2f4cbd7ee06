r"""The baseline: plain DINO on two views, with everything else as in croc_vits16_coco.

    python launch/pretrain.py --config=configs/dino_vits16_coco.py --workdir=runs/dino_coco \
        --config.data.sources=coco:path/to/coco

Same data, model, optimizer and length, so that the dense objective is all that differs.
"""

from ml_collections import ConfigDict

from croc_jax.training.config_dict import recipe_config


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = recipe_config()
    config.data.sources = ("coco:data/coco",)
    config.objective.alpha = 0.0
    return config
