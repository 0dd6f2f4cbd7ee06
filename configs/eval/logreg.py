r"""Logistic regression on the features of single patches, as CAPI's official evaluation of segmentation.

    python launch/evaluate.py --config=configs/eval/logreg.py --checkpoint=WORKDIR --output=DIR \
        --config.dataset.root=ROOT

ROOT is a folder of images/{train,val}/*.jpg and labels/{train,val}/*.png (8-bit class ids, 255 ignored), or
voc:PATH, ade20k:PATH, coco-things:PATH, coco-stuff:PATH or cityscapes:PATH, unpacked as its owners distribute it.

A tenth of the training images chooses the strength of the L2 penalty; then all of them are learned from. Score weights
of patches of 14 pixels at 224, as CAPI does; the size is the same for patches of 16.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

# Eight values from 1e-6 to 1e5, evenly spaced in their logarithm.
C_VALUES = tuple(10 ** (-6 + 11 * step / 7) for step in range(8))


def get_config() -> ConfigDict:
    """Returns the protocol."""
    splits = {"train_split": "train", "train_fraction": 1.0, "val_split": "val", "val_part": "all"}
    return ConfigDict(
        {
            "protocol": "logreg",
            "dataset": {"root": "", "num_classes": placeholder(int), **splits},
            "logreg": {
                "image_size": (224, 224),
                "c_values": C_VALUES,
                "validation_share": 0.1,
                "max_iterations": 1000,
                "tolerance": 1e-12,
                "memory": 5,
                "seed": 0,
            },
            "which": "teacher",
            # Of --checkpoint=random.
            "recipe": "configs/croc_vits16_coco.py",
            "budget": {"host_gib": 3.0, "device_gib": 1.0, "batch_size": 8, "num_threads": 2},
        }
    )
