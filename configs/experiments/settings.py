r"""What the settings of CrOC and masked patches do, in short trainings: six minutes of one CPU core a run.

    python launch/experiment.py --config=configs/experiments/settings.py --workdir=runs/settings \
        --images=data/imagenette/train --data=data

Images, networks and labeled data are those of small.py; what random weights score is there.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

SEEDS = (0, 1, 2)
MASKED = ("objective.masked.weight=1.0", "objective.masked.prototypes=256")

ROWS = (
    {"name": "dino", "label": "DINO (alpha 0)", "overrides": ("objective.alpha=0.0",), "seeds": SEEDS},
    {"name": "croc", "label": "CrOC, as the paper sets it", "seeds": SEEDS},
    {"name": "masked", "label": "with masked patches", "overrides": MASKED, "seeds": SEEDS},
    {"name": "croc-4", "label": "CrOC, 4 epochs", "overrides": ("schedule.epochs=4",), "seeds": SEEDS},
    {"name": "dense", "label": "dense loss alone", "overrides": ("objective.global_weight=0.0",)},
    {"name": "lambda-0", "label": "without positions (lambda_pos 0)", "overrides": ("clustering.lambda_pos=0.0",)},
    {"name": "image", "label": 'cost_scale "image"', "overrides": ("clustering.cost_scale=image",)},
    {"name": "keys", "label": "keys", "overrides": ("objective.tokens=keys",)},
    {"name": "last", "label": "last tokens", "overrides": ("objective.tokens=last",)},
    *(
        {
            "name": f"k-{k}",
            "label": f"K_start {k}",
            "overrides": (f"clustering.k_start={k}", f"clustering.k_max={k}"),
        }
        for k in (4, 8, 16)
    ),
    *(
        {"name": f"lambda-{value}", "label": f"lambda_pos {value}", "overrides": (f"clustering.lambda_pos={value}.0",)}
        for value in (2, 1, 3)
    ),
    {"name": "mixed", "label": "products in bfloat16", "overrides": ("backbone.dtype=mixed",)},
)
# CrOC as the paper sets it has values, K_start 12 and lambda_pos 4.
TABLES = (
    {"title": "Beyond the paper", "rows": ("croc", "croc-4", "masked")},
    {"title": "The losses and the cost", "rows": ("dino", "croc", "dense", "image")},
    {"title": "Which tokens are clustered", "rows": ("croc", "keys", "last")},
    {"title": "K_start", "rows": ("k-4", "k-8", "croc", "k-16")},
    {"title": "lambda_pos", "rows": ("lambda-0", "lambda-1", "lambda-2", "lambda-3", "croc")},
    {"title": "Precision", "rows": ("croc", "mixed")},
)


def get_config() -> ConfigDict:
    """Returns the experiment."""
    small = runpy.run_path(str(Path(__file__).with_name("small.py")))
    config = small["get_config"]()
    config.update({"base": "configs/experiments/recipe.py:quick", "rows": ROWS, "tables": TABLES})
    return config
