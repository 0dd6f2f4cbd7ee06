r"""k-NN classification of frozen features, as in DINO's official evaluation: nothing is trained.

    python launch/evaluate.py --config=configs/eval/knn.py --checkpoint=WORKDIR --output=DIR \
        --config.dataset.root=ROOT

ROOT holds {train,val}/CLASS/*.jpg, the layout of ImageNet; or it is tfds:NAME[@DATA_DIR], a prepared data set with
a feature "label" (such as tfds:imagenet2012, with --config.dataset.val_split=validation).
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the protocol."""
    return ConfigDict(
        {
            "protocol": "knn",
            "dataset": {"root": "", "train_split": "train", "val_split": "val"},
            "knn": {
                # "cls", "mean" (of the patch tokens) or "cls_mean" (both).
                "feature": "cls",
                "resize": 256,
                "image_size": 224,
                # One score each; the first gives "top1" and "top5".
                "neighbors": (20, 10, 100, 200),
                "temperature": 0.07,
            },
            "which": "teacher",
            # Of --checkpoint=random.
            "recipe": "configs/croc_vits16_imagenet.py",
            "budget": {"host_gib": 3.0, "device_gib": 1.0, "batch_size": 32, "num_threads": 2},
        }
    )
