r"""Dense nearest-neighbor retrieval: patches of a split get the labels of the most similar ones of another.

    python launch/evaluate.py --config=configs/eval/retrieval.py --checkpoint=WORKDIR --output=DIR \
        --config.dataset.root=ROOT

ROOT is a folder of images/{train,val}/*.jpg and labels/{train,val}/*.png (8-bit class ids, 255 ignored), or
voc:PATH, ade20k:PATH, coco-things:PATH, coco-stuff:PATH or cityscapes:PATH, unpacked as its owners distribute it.
Nothing is trained. Patches of the memory are drawn evenly from all training images, without augmentation.

The variants follow what others publish, with a memory of 10,240,000 patches of randomly cropped images: `:hummingbird`
the code of vpariza/open-hummingbird-eval (Balazevic et al. 2023), `:dip` that of sirkosophia/DIP (Sirko-Galouchenko et
al. 2025). Both suit data whose class 0 is the background, such as VOC: ignored pixels are background in the memory.
ADE20K has `:hummingbird_ade20k` and `:dip_ade20k`, where they are a class of their own (which DIP scores, too).

    --config=configs/eval/retrieval.py:hummingbird --config.dataset.root=voc:PATH --config.dataset.train_split=trainaug
    --config=configs/eval/retrieval.py:dip_ade20k --config.dataset.root=ade20k:PATH

Labels are scored at the size of the images; --config.retrieval.score_size=0,0 scores them at that of their files.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

DEFAULT = {
    "image_size": (448, 448),
    "score_size": placeholder(tuple),
    "memory_size": 1_024_000,
    "num_neighbors": 30,
    "temperature": 0.02,
    "seed": 0,
    # What others do beside; see the variants.
    "whole_patches": False,
    "sampling": "uniform",
    "memory_epochs": 1,
    "augmentation": "none",
    "interpolation": "bicubic",
    "ignored": "left_out",
}
HUMMINGBIRD = DEFAULT | {
    # 518 for patches of 14 pixels, 512 for those of 16 and 8.
    "image_size": (518, 518),
    "score_size": (518, 518),
    "whole_patches": True,
    "memory_size": 10_240_000,
    "sampling": "class_balanced",
    "memory_epochs": 2,
    "augmentation": "crop_jitter",
    "interpolation": "bilinear",
    "ignored": "first",
}
DIP = HUMMINGBIRD | {"image_size": (504, 504), "score_size": (504, 504), "temperature": 0.07}

VARIANTS = {
    "default": DEFAULT,
    "hummingbird": HUMMINGBIRD,
    "hummingbird_ade20k": HUMMINGBIRD | {"ignored": "own"},
    "dip": DIP,
    "dip_ade20k": DIP | {"ignored": "scored"},
}


def get_config(variant: str = "default") -> ConfigDict:
    """Returns the protocol: "default", "hummingbird", "hummingbird_ade20k", "dip" or "dip_ade20k"."""
    if variant not in VARIANTS:
        raise ValueError(f"variant={variant!r}: choose one of {', '.join(VARIANTS)}")
    splits = {"train_split": "train", "train_fraction": 1.0, "val_split": "val", "val_part": "all"}
    return ConfigDict(
        {
            "protocol": "retrieval",
            "dataset": {"root": "", "num_classes": placeholder(int), **splits},
            "retrieval": VARIANTS[variant],
            "which": "teacher",
            # Of --checkpoint=random.
            "recipe": "configs/croc_vits16_coco.py",
            "budget": {"host_gib": 3.0, "device_gib": 1.0, "batch_size": 8, "num_threads": 2},
        }
    )
