"""An experiment that is planned, or trained, in no time."""

from pathlib import Path

import numpy as np
from PIL import Image

from croc_jax.data.sources import FolderSource
from croc_jax.data.sources.identity import identify
from croc_jax.runtime.starts import RunImages, write_images
from croc_jax.runtime.workdir import init_workdir

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENTS = sorted((ROOT / "configs" / "experiments").glob("*.py"))
PROTOCOLS = ("configs/eval/linear.py", "configs/eval/unsupervised.py")
SIZES = (
    "linear.image_size=(16, 16)", "linear.train_size=(4, 4)", "linear.epochs=2", "unsupervised.image_size=(16, 16)",
    "unsupervised.label_size=(8, 8)", "unsupervised.seeds=(0,)",
)  # fmt: skip
TINY = {
    "backbone.width": 16, "backbone.depth": 1, "backbone.num_heads": 2, "head.hidden_dim": 16, "head.bottleneck_dim": 8,
    "head.num_prototypes": 16, "head.num_prototypes_dense": 16, "clustering.k_start": 3, "clustering.k_max": 3,
    "data.views.crop_size": 16, "optimizer.warmup_epochs": 1, "schedule.batch_size": 4, "schedule.epochs": 3,
    "backbone.patch_size": 8, "backbone.variant": "vit_tiny", "runtime.log_every_steps": 1,
}  # fmt: skip
ROWS = (
    {"name": "random", "label": "random weights", "train": False, "seeds": (0, 1)},
    {"name": "one", "label": "one seed"},
    {"name": "croc", "label": "CrOC", "seeds": (3, 5), "curve": True},
    {"name": "dino", "label": "DINO", "overrides": ("objective.alpha=0.0",), "seeds": (3, 5)},
)
EVALUATIONS = ({"name": "bands", "root": "bands", "protocols": PROTOCOLS, "overrides": SIZES},)


def settings(**changes):
    given = {"base": "configs/experiments/recipe.py:small", "rows": ROWS, "evaluations": EVALUATIONS}
    return given | {"curve": "bands/linear", "curve_epochs": 2} | changes


def photos(folder, count):
    folder.mkdir()
    for index in range(count):
        pixels = np.random.default_rng([7, index]).integers(0, 256, (20, 24, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


def plan(modules, places, **changes):
    experiment = modules.plan.read_experiment(settings(**changes))
    return experiment, modules.plan.make_runs(experiment, places)


def pretend_trained(run, places, *, step):
    init_workdir(run.folder, run.recipe)
    write_images(run.folder, RunImages(identify(FolderSource(places.images)), 2))
    (run.folder / "checkpoints" / str(step)).mkdir(parents=True)
