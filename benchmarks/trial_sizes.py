"""The two sizes of a trial: of the paper's recipe for a real card, and of tiny networks for a test on CPU."""

import dataclasses
from typing import Any, NamedTuple

from croc_jax.clustering import ClusteringConfig
from croc_jax.data.config import DataConfig, ViewsConfig
from croc_jax.losses import ObjectiveConfig
from croc_jax.models import BackboneConfig, HeadConfig
from croc_jax.training.config import OptimizerConfig, Recipe, ScheduleConfig


class TrialSize(NamedTuple):
    """How large everything is.

    Attributes:
        recipe: whose step is measured.
        check_batch: images of a step that is compared with the CPU.
        check_steps: such steps.
        attention_tokens: numbers of tokens at which attention is compared.
        speed_batches: images of a step that is timed, in rising order.
        repeats: steps that are timed.
        num_images: that are generated.
        image_size: height and width of the drawing; files are twice as large.
        config: file of the training run.
        overrides: fields of its recipe.
        seconds: that each phase may take.
        minutes: of training, from start to end.
        total: seconds of all; training gets less if the other phases took long.
    """

    recipe: Recipe
    check_batch: int
    check_steps: int
    attention_tokens: tuple[int, ...]
    speed_batches: tuple[int, ...]
    repeats: int
    num_images: int
    image_size: tuple[int, int]
    config: str
    overrides: dict[str, Any]
    seconds: dict[str, float]
    minutes: float
    total: float


def with_batch(recipe: Recipe, batch: int) -> Recipe:
    """Returns a recipe with another batch."""
    return dataclasses.replace(recipe, schedule=dataclasses.replace(recipe.schedule, batch_size=batch))


# Kernels for sequences are chosen by length: odd and even, and those of 96, 224 and 256 pixels with [CLS] among them.
_TOKENS = (37, 197, 201, 257)
FULL = TrialSize(
    recipe=Recipe(),
    check_batch=16,
    check_steps=5,
    attention_tokens=_TOKENS,
    speed_batches=(256, 512),
    repeats=10,
    num_images=512,
    image_size=(240, 320),
    config="configs/croc_vits16_coco.py",
    overrides={"schedule.batch_size": 256, "runtime.log_every_steps": 5},
    # A step compiles in a minute or more; the parts' is that of the speed.
    seconds={"devices": 30, "numbers": 180, "speed": 200, "parts": 45},
    minutes=3.0,
    # Ten minutes with the installation.
    total=500.0,
)
TOY = TrialSize(
    recipe=Recipe(
        backbone=BackboneConfig(variant="vit_tiny", width=8, depth=1, num_heads=2, patch_size=8),
        head=HeadConfig(hidden_dim=16, bottleneck_dim=8, num_prototypes=16, num_prototypes_dense=16),
        clustering=ClusteringConfig(k_start=3, k_max=3),
        # Warm enough for losses that are far from 0.
        objective=ObjectiveConfig(student_temp=0.5),
        optimizer=OptimizerConfig(base_lr=0.01),
        data=DataConfig(views=ViewsConfig(crop_size=16)),
        schedule=ScheduleConfig(batch_size=8),
    ),
    check_batch=8,
    check_steps=3,
    attention_tokens=_TOKENS,
    speed_batches=(8,),
    repeats=3,
    num_images=24,
    image_size=(32, 48),
    config="configs/demo.py",
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
        "schedule.batch_size": 8,
        "schedule.epochs": 8,
        "runtime.checkpoint_every_minutes": 0,
        "runtime.log_every_steps": 2,
    },
    seconds={"devices": 120, "numbers": 240, "speed": 240, "parts": 240},
    minutes=4.0,
    total=1200.0,
)
SIZES = {"full": FULL, "toy": TOY}
