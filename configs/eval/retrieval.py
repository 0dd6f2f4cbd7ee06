r"""Dense nearest-neighbor retrieval: patches of a split get the labels of the most similar ones of another.

    python launch/evaluate.py --config=configs/eval/retrieval.py --checkpoint=WORKDIR --output=DIR \
        --config.dataset.root=ROOT

ROOT is a folder of images/{train,val}/*.jpg and labels/{train,val}/*.png (8-bit class ids, 255 ignored), or
voc:PATH, ade20k:PATH, coco-things:PATH, coco-stuff:PATH or cityscapes:PATH, unpacked as its owners distribute it.
Nothing is trained. Patches of the memory are drawn evenly from all training images, without augmentation.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    """Returns the protocol."""
    splits = {"train_split": "train", "train_fraction": 1.0, "val_split": "val"}
    return ConfigDict(
        {
            "protocol": "retrieval",
            "dataset": {"root": "", "num_classes": placeholder(int), **splits},
            "retrieval": {
                "image_size": (448, 448),
                "score_size": placeholder(tuple),
                "memory_size": 1_024_000,
                "num_neighbors": 30,
                "temperature": 0.02,
                "seed": 0,
            },
            "which": "teacher",
            # Of --checkpoint=random.
            "recipe": "configs/croc_vits16_coco.py",
            "budget": {"host_gib": 3.0, "device_gib": 1.0, "batch_size": 8, "num_threads": 2},
        }
    )
