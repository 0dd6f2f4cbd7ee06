r"""Post-training of strong weights on 1,000 photographs, for CPU cores: which settings improve features, which harm.

    python launch/experiment.py --config=configs/experiments/post_training.py:path/to/dinov2_vits14_pretrain.pth \
        --workdir=runs/post-training --images=path/to/photos --data=data --part=tuning

After the colon: the weights of a ViT-S/14 of DINOv2. A row takes 310 steps of 16 images, of which it sees two views of
112 pixels (64 patches): 25 minutes of one core without frozen blocks, 16 with nine. On 9,462 photographs it takes 2,955
steps and ten times as long. Below --data lie coco27, camvid and horses (images/{train,val} and labels/{train,val}), and
davis.
"""

from ml_collections import ConfigDict

# Patches of 14 pixels tile all sizes.
SIZES = (
    "linear.image_size=(224, 224)",
    "linear.train_size=(56, 56)",
    "unsupervised.image_size=(224, 224)",
    "retrieval.image_size=(224, 224)",
)
VIDEO_SIZE = ("video.short_side=224", "video.multiple=14")
PROTOCOLS = ("configs/eval/linear.py", "configs/eval/unsupervised.py", "configs/eval/retrieval.py")
WEIGHTS = "weights/dinov2_vits14_pretrain.pth"

COMMON = (
    "data.views.crop_size=112",
    "schedule.batch_size=16",
    "schedule.epochs=5",
    # As many prototypes as a few thousand images can fill.
    "head.num_prototypes=4096",
    "head.num_prototypes_dense=2048",
    # In 310 steps, the teacher of the recipe would take over a quarter of what the student learns.
    "optimizer.teacher_momentum=0.99",
    "evaluation.unlabeled=False",
    "runtime.checkpoint_every_minutes=2.0",
)
# Of a batch of 256, for the rows that differ in something else.
RATE = "5e-4"
FROZEN = "optimizer.frozen_blocks=9"
ALONE = ("optimizer.freeze_backbone_epochs=1.0", "optimizer.freeze_last_layer_epochs=0")
ROWS = (
    # Name, label, rate, and settings.
    ("all", f"post-trained, all blocks, rate {RATE}", RATE, ()),
    ("all-high", "ten times the rate", "5e-3", ()),
    ("all-low", "a tenth of the rate", "5e-5", ()),
    ("frozen", f"nine frozen blocks, rate {RATE}", RATE, (FROZEN,)),
    ("frozen-high", "nine frozen blocks, ten times the rate", "5e-3", (FROZEN,)),
    ("alone", "heads alone for an epoch", RATE, ALONE),
    ("dino", "DINO's loss alone (alpha 0)", RATE, ("objective.alpha=0.0",)),
)


def get_config(weights: str = WEIGHTS) -> ConfigDict:
    """Returns the experiment, from the file of weights that it starts from."""
    common = (*COMMON, f"init_from.source={weights}")
    return ConfigDict(
        {
            "base": "configs/post_training.py:dinov2_vits14",
            "rows": (
                {"name": "start", "label": "DINOv2, as it is", "train": False, "overrides": common},
                *(
                    {"name": name, "label": label, "overrides": (*common, f"optimizer.base_lr={rate}", *settings)}
                    for name, label, rate, settings in ROWS
                ),
            ),
            "evaluations": (
                *(
                    {"name": name, "root": name, "protocols": PROTOCOLS, "overrides": SIZES}
                    for name in ("coco27", "camvid", "horses")
                ),
                {"name": "davis", "root": "davis", "protocols": ("configs/eval/davis.py",), "overrides": VIDEO_SIZE},
            ),
            # The settings of a recipe are chosen by these.
            "part": "tuning",
            "jobs": 0,
        }
    )
