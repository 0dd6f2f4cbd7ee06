r"""DAVIS-2017 semi-supervised video segmentation: labels of the first frame are propagated by token similarity.

    python launch/evaluate.py --config=configs/eval/davis.py --checkpoint=WORKDIR --output=DIR \
        --config.dataset.root=ROOT

ROOT holds DAVIS-2017 as its owners distribute it (JPEGImages/480p, Annotations/480p, ImageSets/2017), or
images/SEQUENCE/*.jpg and masks/SEQUENCE/*.png, whose frames need not all have a mask.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the protocol of DINO's evaluation."""
    return ConfigDict(
        {
            "protocol": "video",
            "dataset": {"root": "", "split": "val", "val_part": "all"},
            "video": {
                "short_side": 480,
                "multiple": 64,
                "score_ends": False,
                "num_last_frames": 7,
                "neighborhood": 12,
                "topk": 5,
                "temperature": 0.1,
            },
            "which": "teacher",
            # Of --checkpoint=random.
            "recipe": "configs/croc_vits16_coco.py",
            # One frame at a time: there is nothing to choose.
            "budget": {},
        }
    )
