r"""Pre-training on the few images that one has: CamVid's 367 driving scenes, ten minutes of one CPU core a run.

    python launch/experiment.py --config=configs/experiments/own_images.py --workdir=runs/own-images \
        --images=data/camvid/images/train --data=data

Network and settings are those of small.py, where the images are 9,462 photographs of other things, but for the ones
below. Labels of the training images fit the layer that scores features; pre-training never reads them.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

FEW_IMAGES = (
    # 1,760 updates: an epoch has 22.
    "schedule.epochs=80",
    "optimizer.warmup_epochs=8",
    # At twice the rate, one seed of two lost three points after the warm-up.
    "optimizer.base_lr=8e-3",
)


def get_config() -> ConfigDict:
    """Returns the experiment."""
    small = runpy.run_path(str(Path(__file__).with_name("small.py")))
    config = small["get_config"]()
    config.rows = tuple({**row, "overrides": (*row.get("overrides", ()), *FEW_IMAGES)} for row in small["ROWS"])
    config.evaluations = tuple(one for one in small["EVALUATIONS"] if one["name"] == "camvid")
    config.curve, config.curve_epochs = "camvid/linear", 10
    return config
