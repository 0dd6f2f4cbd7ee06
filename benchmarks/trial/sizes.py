"""The two sizes of a trial: the paper's recipe for a real accelerator, and tiny networks for a test on CPU."""

import dataclasses
from typing import Any, NamedTuple

from programs.compiling import read_recipe

from croc_jax.training.config import Recipe


class TrialSize(NamedTuple):
    """How large everything is.

    Attributes:
        config: name of the config file of the measured step and of the training run.
        overrides: fields of its recipe that differ from the file.
        check_batch: images of a step that is compared with the CPU.
        check_steps: number of such steps.
        speed_batches: images of a step that is timed, in rising order.
        repeats: number of steps that are timed.
        num_images: number of images that are generated.
        image_size: their height and width.
        seconds: time limit of each phase.
        minutes: time of the training run, from start to end.
        total: seconds of everything; the training run gets less if the other phases took long.
    """

    config: str
    overrides: dict[str, Any]
    check_batch: int
    check_steps: int
    speed_batches: tuple[int, ...]
    repeats: int
    num_images: int
    image_size: tuple[int, int]
    seconds: dict[str, float]
    minutes: float
    total: float

    @property
    def recipe(self) -> Recipe:
        """The recipe whose step is measured."""
        return read_recipe(self.config, self.overrides)


def with_batch(recipe: Recipe, batch: int) -> Recipe:
    """Returns a recipe with another batch."""
    return dataclasses.replace(recipe, schedule=dataclasses.replace(recipe.schedule, batch_size=batch))


FULL = TrialSize(
    config="croc_vits16_coco",
    overrides={"schedule.batch_size": 256, "runtime.log_every_steps": 5},
    check_batch=16,
    check_steps=5,
    speed_batches=(256, 512),
    repeats=10,
    num_images=512,
    image_size=(480, 640),
    # A step compiles in a minute or more; "parts" finds the program that "speed" has compiled.
    seconds={"devices": 30, "numbers": 180, "speed": 200, "parts": 45},
    minutes=3.0,
    # Ten minutes with the installation.
    total=500.0,
)
TOY = TrialSize(
    config="demo",
    overrides={
        "backbone.width": 8,
        "backbone.depth": 1,
        "backbone.num_heads": 2,
        "head.hidden_dim": 16,
        "head.bottleneck_dim": 8,
        "head.num_prototypes": 16,
        "head.num_prototypes_dense": 16,
        "clustering.k_start": 3,
        "clustering.k_max": 3,
        "data.views.crop_size": 16,
        # Warm enough for losses that are far from 0.
        "objective.student_temp": 0.5,
        "objective.teacher_temp": 0.07,
        "objective.warmup_teacher_temp": 0.04,
        "schedule.batch_size": 8,
        "schedule.epochs": 8,
        "runtime.checkpoint_every_minutes": 0,
        "runtime.log_every_steps": 2,
    },
    check_batch=8,
    check_steps=3,
    speed_batches=(8,),
    repeats=3,
    num_images=24,
    image_size=(64, 96),
    seconds={"devices": 120, "numbers": 240, "speed": 240, "parts": 240},
    minutes=4.0,
    total=1200.0,
)
SIZES = {"full": FULL, "toy": TOY}
