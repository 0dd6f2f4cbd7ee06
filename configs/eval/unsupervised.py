r"""Unsupervised segmentation: k-means on all frozen tokens of a split, clusters matched with classes (Table 3).

    python launch/evaluate.py --config=configs/eval/unsupervised.py --checkpoint=WORKDIR --output=DIR \
        --config.dataset.root=ROOT

ROOT is a folder of images/{train,val}/*.jpg and labels/{train,val}/*.png (8-bit class ids, 255 ignored), or
voc:PATH, ade20k:PATH, coco-things:PATH, coco-stuff:PATH or cityscapes:PATH, unpacked as its owners distribute it.

Over-clustering: the variant `:over` has 500 clusters, each given the class of most of its pixels.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config(variant: str = "classes") -> ConfigDict:
    """Returns the protocol: "classes" (one cluster a class) or "over" (many)."""
    if variant not in ("classes", "over"):
        raise ValueError(f"variant={variant!r}: choose 'classes' or 'over'")
    over = variant == "over"
    splits = {"train_split": "train", "val_split": "val", "val_part": "all"}
    return ConfigDict(
        {
            "protocol": "unsupervised",
            "dataset": {"root": "", "num_classes": placeholder(int), **splits},
            "unsupervised": {
                "image_size": (448, 448),
                "label_size": (100, 100),
                "num_clusters": 500 if over else placeholder(int),
                "matching": "greedy" if over else "hungarian",
                "l2_normalize": False,
                "seeds": (0, 1, 2, 3, 4),
                "max_iterations": 100,
            },
            "which": "teacher",
            # Of --checkpoint=random.
            "recipe": "configs/croc_vits16_coco.py",
            "budget": {"host_gib": 3.0, "device_gib": 1.0, "batch_size": 8, "num_threads": 2},
        }
    )
