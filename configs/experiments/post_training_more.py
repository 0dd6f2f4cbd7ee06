r"""Post-training of strong weights on 9,462 photographs, those of imagenette: some 75 minutes of two CPU cores.

    python launch/experiment.py --config=configs/experiments/post_training_more.py:path/to/dinov2_vits14_pretrain.pth \
        --workdir=runs/post-training-more --images=data/imagenette/train --data=data

Weights, settings and labeled data are those of post_training.py, but for the length and for products in bfloat16.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

LABEL = "9,462 photographs, 1,773 steps, mixed precision"
SETTINGS = ("schedule.epochs=3", "backbone.dtype=mixed")


def get_config(weights: str = "weights/dinov2_vits14_pretrain.pth") -> ConfigDict:
    """Returns the experiment, from the file of weights that it starts from."""
    few = runpy.run_path(str(Path(__file__).with_name("post_training.py")))["get_config"](weights)
    start, trained = few.rows[:2]
    more = {"name": "more", "label": LABEL, "overrides": (*trained["overrides"], *SETTINGS)}
    # Settings were chosen on the other half.
    few.update({"rows": (start, more), "part": "reporting", "jobs": 1})
    return few
