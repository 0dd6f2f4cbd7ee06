r"""The paper's claim in miniature, for two CPU cores: CrOC beside DINO and random weights, in two hours.

    python launch/experiment.py --config=configs/experiments/small.py --workdir=runs/experiment \
        --images=data/imagenette/train --data=data

Below --data lie coco27, camvid and horses (images/{train,val} and labels/{train,val}), and davis. What settings of
CrOC do is in settings.py.
"""

from ml_collections import ConfigDict

# Whole patches of 16; shared by all protocols, which then share the features of the validation images.
SIZES = (
    "linear.image_size=(240, 320)",
    "unsupervised.image_size=(240, 320)",
    "retrieval.image_size=(240, 320)",
)
PROTOCOLS = ("configs/eval/linear.py", "configs/eval/unsupervised.py", "configs/eval/retrieval.py")
SEEDS = (0, 1, 2)

ROWS = (
    {"name": "random", "label": "random weights", "train": False, "seeds": SEEDS},
    {"name": "dino", "label": "DINO (alpha 0)", "overrides": ("objective.alpha=0.0",), "seeds": SEEDS, "curve": True},
    {"name": "croc", "label": "CrOC, as the paper sets it", "seeds": SEEDS, "curve": True},
)
TABLES = ({"title": "The method", "rows": ("random", "dino", "croc")},)
EVALUATIONS = (
    *(
        {"name": name, "root": name, "protocols": PROTOCOLS, "overrides": SIZES}
        for name in ("coco27", "camvid", "horses")
    ),
    {"name": "davis", "root": "davis", "protocols": ("configs/eval/davis.py",)},
)


def get_config() -> ConfigDict:
    """Returns the experiment."""
    return ConfigDict(
        {
            "base": "configs/experiments/recipe.py:small",
            "rows": ROWS,
            "evaluations": EVALUATIONS,
            "tables": TABLES,
            # No setting was chosen on these.
            "part": "reporting",
            "curve": "coco27/linear",
            "curve_epochs": 1,
            # One a core: two trainings beside each other take less time than one after another.
            "jobs": 0,
        }
    )
