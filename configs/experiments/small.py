r"""The paper's claim in miniature, for two CPU cores: CrOC beside DINO and random weights, and what its settings do.

    python launch/experiment.py --config=configs/experiments/small.py --workdir=runs/experiment \
        --images=data/imagenette/train --data=data

Below --data lie coco27, camvid and horses (images/{train,val} and labels/{train,val}), and davis.
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
    {"name": "lambda-0", "label": "without positions (lambda_pos 0)", "overrides": ("clustering.lambda_pos=0.0",)},
    {"name": "image", "label": 'cost_scale "image"', "overrides": ("clustering.cost_scale=image",)},
    {"name": "dense", "label": "dense loss alone", "overrides": ("objective.global_weight=0.0",)},
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
        for value in (1, 2, 3)
    ),
)
# CrOC as the paper sets it has values, K_start 12 and lambda_pos 4.
TABLES = (
    {"title": "The method", "rows": ("random", "dino", "croc", "dense", "lambda-0", "image")},
    {"title": "Which tokens are clustered", "rows": ("croc", "keys", "last")},
    {"title": "K_start", "rows": ("k-4", "k-8", "croc", "k-16")},
    {"title": "lambda_pos", "rows": ("lambda-0", "lambda-1", "lambda-2", "lambda-3", "croc")},
)
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
