r"""k-NN segmentation as in CAPI (Darcet et al. 2025; facebookresearch/capi: eval_segmentation.py).

    python launch/evaluate.py --config=configs/eval/knn_segmentation.py --checkpoint=WORKDIR --output=DIR \
        --config.dataset.root=ade20k:PATH

The data is that of configs/eval/retrieval.py. Nothing is trained: each pixel of a patch gets the class that most of its
nearest patches have at the same place. The number of neighbors and the distance are chosen on a tenth of the training
images.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    """Returns the protocol."""
    splits = {"train_split": "train", "train_fraction": 1.0, "val_split": "val", "val_part": "all"}
    return ConfigDict(
        {
            "protocol": "knn_segmentation",
            "dataset": {"root": "", "num_classes": placeholder(int), **splits},
            "knn_segmentation": {
                "image_size": (224, 224),
                # To choose from; one of each leaves no choice, and sets no images aside.
                "neighbors": (1, 3, 10, 30),
                "distances": ("cosine", "l2"),
                "validation_share": 0.1,
                "standardize": True,
                "seed": 0,
            },
            "which": "teacher",
            # Of --checkpoint=random.
            "recipe": "configs/croc_vits16_coco.py",
            "budget": {"host_gib": 3.0, "device_gib": 1.0, "batch_size": 8, "num_threads": 2},
        }
    )
