r"""The paper's ablations on COCO: 12 runs of 300 epochs, scored as in Tables 4, 5 and 6.

    python launch/sweep.py --sweep=configs/sweeps/ablations.py --workdir=runs/ablations --where=slurm \
        --config.data.sources=coco:path/to/coco --sweep.evaluations.linear_voc.dataset.root=voc:path/to/VOCdevkit

`:lambda_pos`, `:k_start` and `:tokens` after the file name take one table alone. What the tables share is run once.
"""

from ml_collections import ConfigDict

GRIDS = {
    # Table 4; infinity clusters by position alone.
    "lambda_pos": {"clustering.lambda_pos": (0.0, 1.0, 2.0, 3.0, 4.0, float("inf"))},
    # Table 5.
    "k_start": {"clustering.k_start,clustering.k_max": (4, 8, 12, 16)},
    # Table 6.
    "tokens": {"objective.tokens": ("last", "queries", "keys", "values")},
}
LINEAR, UNSUPERVISED = "configs/eval/linear.py:paper", "configs/eval/unsupervised.py"
VOC, THINGS, STUFF = "voc:data/VOCdevkit", "coco-things:data/coco", "coco-stuff:data/coco"


def get_config(variant: str = "all") -> ConfigDict:
    """Returns the sweep: "all", "lambda_pos", "k_start" or "tokens"."""
    if variant not in ("all", *GRIDS):
        raise ValueError(f"variant={variant!r}: choose 'all', {', '.join(map(repr, GRIDS))}")
    return ConfigDict(
        {
            "base": "configs/croc_vits16_coco.py",
            # Other than there; what a grid does not vary stays so.
            "common": {"clustering": {"lambda_pos": 3.0, "k_start": 12, "k_max": 12}, "objective": {"tokens": "keys"}},
            "grids": tuple(grid for name, grid in GRIDS.items() if variant in ("all", name)),
            "evaluations": {
                "unsupervised_voc": {"config": UNSUPERVISED, "dataset": {"root": VOC}},
                "unsupervised_things": {"config": UNSUPERVISED, "dataset": {"root": THINGS}},
                "unsupervised_stuff": {"config": UNSUPERVISED, "dataset": {"root": STUFF}},
                "linear_voc": {"config": LINEAR, "dataset": {"root": VOC, "train_split": "trainaug"}},
                "linear_things": {"config": LINEAR, "dataset": {"root": THINGS, "train_fraction": 0.1}},
                "linear_stuff": {"config": LINEAR, "dataset": {"root": STUFF, "train_fraction": 0.1}},
            },
        }
    )
