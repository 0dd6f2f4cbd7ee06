r"""CrOC, ViT-S/16 on gray 16-bit images: X-rays, microscopes, thermal cameras.

    python launch/prepare.py --statistics=runs/gray.json --source=folder:path/to/images \
        --channels=1 --dtype=uint16
    python launch/pretrain.py --config=configs/gray16.py --workdir=runs/gray16 \
        --config.data.folders=path/to/images --config.data.statistics=runs/gray.json

The first command measures which values become 0 and 1, and mean and deviation of what is between. Detectors seldom use
all 16 bits: without it, 0 and 65,535 become 0 and 1, and images of 12 bits are nearly black.
"""

from ml_collections import ConfigDict

from croc_jax.training.config_dict import recipe_config


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = recipe_config()
    config.data.folders = ("data/gray16",)
    config.data.channels = 1
    config.data.dtype = "uint16"
    # Of values that fill their range; data.statistics replaces them.
    config.backbone.image_mean = (0.5,)
    config.backbone.image_std = (0.25,)
    # Gray images have no hue.
    config.data.photometric.saturation = 0.0
    config.data.photometric.hue = 0.0
    config.data.photometric.grayscale_probability = 0.0
    # In place of it: detectors have noise, and it says nothing about what they see.
    config.data.photometric.noise = 0.05
    return config
