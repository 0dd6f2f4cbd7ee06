r"""Linear segmentation of frozen features: a linear layer, cross-entropy, mean IoU over the validation split.

    python launch/evaluate.py --config=configs/eval/linear.py --checkpoint=WORKDIR --output=DIR \
        --config.dataset.root=ROOT

ROOT is a folder of images/{train,val}/*.jpg and labels/{train,val}/*.png (8-bit class ids, 255 ignored), or
voc:PATH, ade20k:PATH, coco-things:PATH, coco-stuff:PATH or cityscapes:PATH, unpacked as its owners distribute it.
`--checkpoint=random` scores the start of the run that `--config.recipe` names.

The default suits small sets of small images: it whitens the features, so that the layer converges in 30 epochs on any
weights. The variant `:paper` is the protocol of the paper: 448 pixels, logits and labels at 100 x 100, SGD; `:demo` is
the default on the images of `make demo`, in fewer epochs.

The variants `:dinov2` and `:dinov3` are the protocols of these papers, by the configs that their authors released:
batch normalization and a linear layer on the last patch tokens of augmented crops of 512 pixels, 40,000 iterations of
16 crops, windows in scoring, and labels at their full size throughout. Their settings are --config.linear_crops.FIELD.
Every crop is encoded anew, 640,000 in all: use an accelerator, and a higher --config.budget.num_threads.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

SMALL = {
    "image_size": (240, 320),
    "train_size": (60, 80),
    "score_size": placeholder(tuple),
    "normalization": "whiten",
    "optimizer": "adamw",
    "lr": 0.05,
    "weight_decay": 0.0,
    "schedule": "cosine",
    "drop_epochs": (),
    "epochs": 30,
    "batch_size": 8,
    "seed": 0,
}
PAPER = SMALL | {
    "image_size": (448, 448),
    "train_size": (100, 100),
    "score_size": (100, 100),
    "normalization": "none",
    "optimizer": "sgd",
    "lr": 0.01,
    "weight_decay": 1e-4,
    "schedule": "step",
    "drop_epochs": (20,),
    "epochs": 25,
    "batch_size": 60,
}
DEMO = SMALL | {"image_size": (144, 192), "train_size": (36, 48), "epochs": 12}
# dinov2_vitb14_ade20k_linear_config.py and its like, beside the released heads of facebookresearch/dinov2.
DINOV2 = {
    "short_side": 512,
    "crop_size": 512,
    "stride": 341,
    "scale": (0.5, 2.0),
    "antialias": False,
    "max_class_share": 0.75,
    "flip": 0.5,
    "brightness": 32 / 255,
    "contrast": 0.5,
    "saturation": 0.5,
    "saturation_kind": "hsv",
    "hue": 0.1,
    "dropout": 0.0,
    "lr": 1e-3,
    "weight_decay": 1e-4,
    "schedule": "linear",
    "warmup_iterations": 1500,
    "iterations": 40_000,
    "batch_size": 16,
    "seed": 0,
}
# dinov3/eval/segmentation/configs/config-ade20k-linear-training.yaml of facebookresearch/dinov3.
DINOV3 = DINOV2 | {
    "antialias": True,
    "saturation_kind": "gray",
    "hue": 0.5,
    "dropout": 0.1,
    "weight_decay": 1e-3,
    "schedule": "cosine",
}


def get_config(variant: str = "small") -> ConfigDict:
    """Returns the protocol: "small", "paper", "demo", "dinov2" or "dinov3"."""
    variants = {
        "small": ("linear", SMALL, "configs/presets.py:1k"),
        "paper": ("linear", PAPER, "configs/croc_vits16_coco.py"),
        "demo": ("linear", DEMO, "configs/demo.py"),
        "dinov2": ("linear_crops", DINOV2, "configs/croc_vits16_coco.py"),
        "dinov3": ("linear_crops", DINOV3, "configs/croc_vits16_coco.py"),
    }
    if variant not in variants:
        raise ValueError(f"variant={variant!r}: choose {', '.join(map(repr, variants))}")
    name, settings, recipe = variants[variant]
    # Of the training images, 0.1 of COCO is usual.
    splits = {"train_split": "train", "train_fraction": 1.0, "val_split": "val", "val_part": "all"}
    return ConfigDict(
        {
            "protocol": name,
            "dataset": {"root": "", "num_classes": placeholder(int), **splits},
            name: settings,
            # Of a workdir: "teacher" or "student".
            "which": "teacher",
            # Of --checkpoint=random: a config file, or a workdir.
            "recipe": recipe,
            # Limits of memory, which change no score.
            "budget": {"host_gib": 3.0, "device_gib": 1.0, "batch_size": 8, "num_threads": 2},
        }
    )
