r"""k-NN classification of frozen features, as in DINO's official evaluation: no training at all.

    python launch/evaluate.py --config=configs/eval/knn.py --checkpoint=WORKDIR --output=DIR \
        --config.dataset.root=ROOT

ROOT holds {train,val}/CLASS/*.jpg, the layout of ImageNet; or it is tfds:NAME[@DATA_DIR], a prepared data set with
a feature "label" (such as tfds:imagenet2012, with --config.dataset.val_split=validation).
`--checkpoint=random` scores the start of the run that `--config.recipe` names.
"""

from ml_collections import ConfigDict

KNN = {
    # "cls", "mean" (of the patch tokens) or "cls_mean" (both).
    "feature": "cls",
    "resize": 256,
    "image_size": 224,
    # One score each; the first gives "top1" and "top5".
    "neighbors": (20, 10, 100, 200),
    "temperature": 0.07,
}


def get_config() -> ConfigDict:
    """Returns the protocol."""
    return ConfigDict(
        {
            "protocol": "knn",
            "dataset": {"root": "", "train_split": "train", "val_split": "val"},
            "knn": KNN,
            # Of the weights in a workdir: "teacher" or "student".
            "which": "teacher",
            # The architecture of --checkpoint=random: a config file, or a workdir.
            "recipe": "configs/croc_vits16_imagenet.py",
            # What changes no score.
            "budget": {"host_gib": 3.0, "device_gib": 1.0, "batch_size": 32, "num_threads": 2},
        }
    )
