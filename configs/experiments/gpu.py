r"""The rows of small.py and settings.py for one GPU: a ViT-S/16 on crops of 128 pixels, with the same labeled data.

    python launch/experiment.py --config=configs/experiments/gpu.py --workdir=runs/experiment_gpu \
        --images=data/imagenette/train --data=data

Half an hour on one H100 by estimate, not by measurement. docs/scaling.md has at least 75 ms for a batch of 256 crops of
224 pixels; a third of the tokens and twice the bound make about 5,000 images/s, so 18 trainings of 24 epochs of 9,462
images take 14 minutes, and 84 evaluations, most of whose time starts and compiles programs, 11 minutes, four at a time.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

# Sizes in whole patches of 16.
SIZES = (
    "linear.image_size=(240, 320)",
    "unsupervised.image_size=(448, 448)",
    "retrieval.image_size=(448, 448)",
)


def get_config() -> ConfigDict:
    """Returns the experiment."""
    small, settings = (runpy.run_path(str(Path(__file__).with_name(f"{name}.py"))) for name in ("small", "settings"))
    config = small["get_config"]()
    # Four epochs are few here.
    known = {row["name"] for row in small["ROWS"]} | {"croc-4"}
    # One seed each, and prototypes for larger networks.
    others = (
        {**row, "seeds": (0,), "overrides": tuple(field for field in row["overrides"] if "prototypes" not in field)}
        for row in settings["ROWS"]
        if row["name"] not in known
    )
    config.rows = (*small["ROWS"], *others)
    config.tables = (
        *small["TABLES"],
        *({**table, "rows": tuple(row for row in table["rows"] if row != "croc-4")} for table in settings["TABLES"]),
    )
    config.base = "configs/experiments/recipe.py:gpu"
    labeled = ({**one, "overrides": SIZES} for one in config.evaluations if one["name"] != "davis")
    # DAVIS at its own size.
    config.evaluations = (*labeled, {"name": "davis", "root": "davis", "protocols": ("configs/eval/davis.py",)})
    # Starts and input of one run beside the steps of others; a small network leaves room on the device.
    config.jobs = 4
    return config
