r"""Pre-training on the few images that one has: CamVid's 367 driving scenes, twenty minutes of one CPU core a run.

    python launch/experiment.py --config=configs/experiments/own_images.py --workdir=runs/own-images \
        --images=data/camvid/images/train --data=data

The settings are those of configs/presets.py:1k. Labels of the training images fit the layer that scores features;
pre-training never reads them.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the experiment."""
    small = runpy.run_path(str(Path(__file__).with_name("small.py")))
    config = small["get_config"]()
    config.base = "configs/experiments/recipe.py:few"
    config.evaluations = tuple(one for one in small["EVALUATIONS"] if one["name"] == "camvid")
    config.curve, config.curve_epochs = "camvid/linear", 20
    return config
