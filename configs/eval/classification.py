r"""Linear classification of frozen features: one linear layer on one vector an image, top-1 and top-5.

    python launch/evaluate.py --config=configs/eval/classification.py --checkpoint=WORKDIR --output=DIR \
        --config.dataset.root=ROOT

ROOT holds {train,val}/CLASS/*.jpg, the layout of ImageNet; or it is tfds:NAME[@DATA_DIR], a prepared data set with
a feature "label" (such as tfds:imagenet2012, with --config.dataset.val_split=validation).

The default suits small sets: it whitens the features, so that the layer converges soon on any weights. The variant
`:dino` has the optimizer of DINO's official evaluation, on the last [CLS] token and without augmentation.
"""

from ml_collections import ConfigDict

SMALL = {
    # "cls", "mean" (of the patch tokens) or "cls_mean" (both).
    "feature": "cls_mean",
    "resize": 256,
    "image_size": 224,
    "normalization": "whiten",
    "lr": 0.1,
    "weight_decay": 1e-4,
    "epochs": 100,
    "batch_size": 256,
    "seed": 0,
}
DINO = SMALL | {"feature": "cls", "normalization": "none", "lr": 0.001, "weight_decay": 0.0, "batch_size": 1024}


def get_config(variant: str = "small") -> ConfigDict:
    """Returns the protocol: "small" or "dino"."""
    variants = {"small": SMALL, "dino": DINO}
    if variant not in variants:
        raise ValueError(f"variant={variant!r}: choose 'small' or 'dino'")
    return ConfigDict(
        {
            "protocol": "classification",
            "dataset": {"root": "", "train_split": "train", "val_split": "val"},
            "classification": variants[variant],
            "which": "teacher",
            # Of --checkpoint=random.
            "recipe": "configs/croc_vits16_imagenet.py",
            "budget": {"host_gib": 3.0, "device_gib": 1.0, "batch_size": 32, "num_threads": 2},
        }
    )
