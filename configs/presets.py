r"""Settings by the number of images, from a thousand to a million; each with its reason, which a run prints.

    python launch/pretrain.py --config=configs/presets.py:auto --workdir=runs/mine \
        --config.data.folders=path/to/images

After the colon: 1k, 10k, 100k, 1m, or auto, the nearest to the number of images in the folders and sources. 1k and 10k
are measured settings of a small network: at 1,000 and 10,000 images, up to an hour of one CPU core. 100k and 1m are the
published settings of CrOC on COCO and ImageNet, for one GPU and more.
"""

from ml_collections import ConfigDict

from croc_jax.training.config_dict import recipe_config
from croc_jax.training.presets import AUTO, PRESETS


def get_config(size: str = AUTO) -> ConfigDict:
    """Returns the recipe for a number of images."""
    if size not in (AUTO, *PRESETS):
        raise ValueError(f"size={size!r}: choose one of {', '.join((AUTO, *PRESETS))}")
    config = recipe_config()
    config.preset = size
    if size != AUTO:
        config.update_from_flattened_dict(PRESETS[size].values)
    return config
