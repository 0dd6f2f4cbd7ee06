r"""Object discovery by LOST: one box an image from the keys of the last block, CorLoc on VOC; no training.

    python launch/evaluate.py --config=configs/eval/discovery.py --checkpoint=WORKDIR --output=DIR \
        --config.dataset.root=ROOT

ROOT is VOCdevkit, or the folder that it lies in.
A ResNet or a ConvNeXt has no keys: --config.discovery.tokens=last --config.discovery.centered=True takes its map.
`--checkpoint=random` scores the start of the run that `--config.recipe` names.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the protocol."""
    return ConfigDict(
        {
            "protocol": "discovery",
            # VOC07 of the LOST paper; its VOC12 is year=2012. hard=False leaves truncated and difficult objects out.
            "dataset": {"root": "", "split": "trainval", "year": 2007, "hard": True},
            "discovery": {"tokens": "keys", "centered": False, "num_patches": 100},
            # Of the weights in a workdir: "teacher" or "student".
            "which": "teacher",
            # The architecture of --checkpoint=random: a config file, or a workdir.
            "recipe": "configs/croc_vits16_imagenet.py",
            # What changes no score: one image at a time, at its own size, so there is nothing to choose.
            "budget": {},
        }
    )
