r"""CrOC with masked patches (iBOT, DINOv2), ViT-S/16 on COCO, 300 epochs: for objects through videos.

    python launch/pretrain.py --config=configs/croc_masked_vits16_coco.py --workdir=runs/croc_masked \
        --config.data.sources=coco:path/to/coco

The loss of masked patches is all that differs from croc_vits16_coco: about 5% more time by compilers' estimates, and
0.2 GB more memory. In short trainings of a small network, it follows objects through six videos better, by two to three
points of J&F, and is two points worse at segmenting horses: docs/learning.md. No published number belongs to it.
"""

from ml_collections import ConfigDict

from croc_jax.training.config_dict import recipe_config


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = recipe_config()
    config.data.sources = ("coco:data/coco",)
    config.objective.masked.weight = 1.0
    return config
