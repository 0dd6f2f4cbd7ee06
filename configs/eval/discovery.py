r"""Object discovery by LOST: one box an image from the keys of the last block, CorLoc on VOC; nothing is trained.

    python launch/evaluate.py --config=configs/eval/discovery.py --checkpoint=WORKDIR --output=DIR \
        --config.dataset.root=ROOT

ROOT is VOCdevkit, or the folder that it lies in. A ResNet or a ConvNeXt has no keys:
--config.discovery.tokens=last --config.discovery.centered=True uses its feature map.
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
            "which": "teacher",
            # Of --checkpoint=random.
            "recipe": "configs/croc_vits16_imagenet.py",
            # One image at a time, at its own size: there is nothing to choose.
            "budget": {},
        }
    )
