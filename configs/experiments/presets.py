r"""What the settings of the presets 1k and 10k do, one at a time, and curves over their whole length.

    python launch/experiment.py --config=configs/experiments/presets.py:10k --workdir=runs/presets-10k \
        --images=data/imagenette/train --data=data

After the colon: 1k, for about a thousand photographs, or 10k. Rows that vary one setting make 2,500 updates in both;
the last two are the preset in full, with and without the dense loss. Choices are made on the tuning half of the
validation images, so that the other half can be reported.
"""

from ml_collections import ConfigDict

SIZES = ("linear.image_size=(240, 320)", "retrieval.image_size=(224, 224)")
PROTOCOLS = ("configs/eval/linear.py", "configs/eval/retrieval.py")
# 2,480 updates of 32 images, 2,496 of 10,000; warm-ups in the proportions of the presets, in whole epochs.
SHORT = {
    "1k": ("schedule.epochs=80", "optimizer.warmup_epochs=3", "optimizer.freeze_last_layer_epochs=3",
           "objective.warmup_teacher_temp_epochs=20"),
    "10k": ("schedule.epochs=8", "optimizer.warmup_epochs=1", "objective.warmup_teacher_temp_epochs=2"),
}  # fmt: skip
CURVE_EPOCHS = {"1k": 25, "10k": 5}
VARIED = {
    "lr-half": ("half the learning rate", "optimizer.base_lr=4e-3"),
    "lr-twice": ("twice the learning rate", "optimizer.base_lr=1.6e-2"),
    "temp-0.04": ("teacher temperature 0.04", "objective.teacher_temp=0.04"),
    "temp-paper": (
        "teacher temperature 0.04 to 0.07", "objective.warmup_teacher_temp=0.04", "objective.teacher_temp=0.07"
    ),
    "momentum-0.95": ("teacher momentum 0.95", "optimizer.teacher_momentum=0.95"),
    "momentum-0.996": ("teacher momentum 0.996", "optimizer.teacher_momentum=0.996"),
    "prototypes-128": ("128 and 64 prototypes", "head.num_prototypes=128", "head.num_prototypes_dense=64"),
    "prototypes-2048": ("2,048 and 1,024 prototypes", "head.num_prototypes=2048", "head.num_prototypes_dense=1024"),
    "scale-paper": ("crops of 0.25 to 1 of the image", "data.views.scale=(0.25, 1.0)"),
    "scale-small": ("crops of 0.05 to 0.4 of the image", "data.views.scale=(0.05, 0.4)"),
    "batch-128": ("batch 128, a quarter of the updates, twice the rate", "schedule.batch_size=128",
                  "optimizer.base_lr=4e-3"),
    "decay-0.4": ("weight decay up to 0.4", "optimizer.weight_decay_end=0.4"),
}  # fmt: skip
# The table has scores with labels.
ALL = ("evaluation.unlabeled=False",)


def get_config(size: str = "10k") -> ConfigDict:
    """Returns the experiment for a preset."""
    if size not in SHORT:
        raise ValueError(f"size={size!r}: choose one of {', '.join(SHORT)}")
    short = ALL + SHORT[size]
    rows = (
        {"name": "random", "label": "random weights", "train": False, "seeds": (0, 1, 2)},
        {"name": "short", "label": "the preset in 2,500 updates", "overrides": short, "seeds": (0, 1, 2)},
        *(
            {"name": name, "label": label, "overrides": (*short, *overrides)}
            for name, (label, *overrides) in VARIED.items()
        ),
        {"name": "full", "label": "the preset", "overrides": ALL, "curve": True},
        {"name": "full-dino", "label": "the same, DINO (alpha 0)", "overrides": (*ALL, "objective.alpha=0.0"),
         "curve": True},
    )  # fmt: skip
    return ConfigDict(
        {
            "base": f"configs/presets.py:{size}",
            "rows": rows,
            "evaluations": tuple(
                {"name": name, "root": name, "protocols": PROTOCOLS, "overrides": SIZES}
                for name in ("coco27", "camvid", "horses")
            ),
            "tables": (
                {"title": "One setting at a time", "rows": ("random", "short", *VARIED)},
                {"title": "In full", "rows": ("random", "short", "full", "full-dino")},
            ),
            "part": "tuning",
            "curve": "coco27/linear",
            "curve_epochs": CURVE_EPOCHS[size],
            # One a core.
            "jobs": 0,
        }
    )
