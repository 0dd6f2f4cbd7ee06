"""Linear segmentation as DINOv2 and DINOv3 report it: augmented crops, batch normalization, labels at full size."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optax
from jaxtyping import Array, Float

from croc_jax.data.labeled.segmentation import SegmentationSplit
from croc_jax.evaluation.datasets import PixelSplits, count_images, describe_pixels, open_pixel_splits
from croc_jax.evaluation.dense_head import (
    EPSILON,
    START_DEVIATION,
    CropStep,
    DenseHead,
    HeadState,
    init_head,
    make_crop_encoder,
    make_logits_fn,
    make_schedule,
    make_step_fn,
)
from croc_jax.evaluation.features import FrozenFeatures
from croc_jax.evaluation.labeled_crops import crop_batches
from croc_jax.evaluation.metrics import IOU_SCORES, iou_scores
from croc_jax.evaluation.registry import Protocol, Result, Timer
from croc_jax.evaluation.settings import CropConfig, DistortionConfig, check_choice, check_positive
from croc_jax.evaluation.sliding_windows import score_windows
from croc_jax.evaluation.visualize import save_examples
from croc_jax.models import Backbone
from croc_jax.models.batch_norm import EPSILON as NORM_EPSILON
from croc_jax.models.batch_norm import MOMENTUM
from croc_jax.pixel_format import PixelFormat

# Steps whose mean is the loss in results.json.
_LAST_STEPS = 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearCropsConfig(CropConfig, DistortionConfig):
    """Every setting that moves the score; the defaults are those of DINOv2's released segmentation configs.

    Attributes:
        stride: pixels between the windows of an image in scoring.
        dropout: share of the features of each crop that training drops.
        lr: learning rate, of AdamW.
        weight_decay: decoupled weight decay, times the learning rate, of all parameters of the head.
        schedule: learning rate after the warm-up: "linear" or "cosine", to 0 at the end.
        warmup_iterations: steps of the linear warm-up.
        iterations: steps of training.
        batch_size: crops a step.
        seed: seed of the start, the order of the images, the crops and their colors.
    """

    stride: int = 341
    dropout: float = 0.0
    lr: float = 1e-3
    weight_decay: float = 1e-4
    schedule: str = "linear"
    warmup_iterations: int = 1500
    iterations: int = 40_000
    batch_size: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises ValueError, naming the field and the value, for settings that cannot work."""
        CropConfig.__post_init__(self)
        DistortionConfig.__post_init__(self)
        check_choice(self, "schedule", ("linear", "cosine"))
        check_positive(self, "stride", "lr", "iterations", "batch_size")
        if self.stride > self.crop_size:
            raise ValueError(f"stride={self.stride}: windows of crop_size={self.crop_size} would leave pixels out")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout}: a share lies between 0 and 1")
        if not 0 <= self.warmup_iterations < self.iterations:
            raise ValueError(
                f"warmup_iterations={self.warmup_iterations}: must be below iterations={self.iterations}; lower it, too"
            )


def evaluate(
    features: FrozenFeatures, dataset: PixelSplits, config: LinearCropsConfig, output: Path | None = None
) -> Result:
    """Trains a head on crops of one split and scores it on another; see `Protocol` for the arguments."""
    train, val = dataset
    check_colors(config, features.module.pixels)
    timer, module = Timer(), features.module
    head_params, losses = fit_head(features, train, config)
    timer.end("training")
    logits_fn = functools.partial(make_logits_fn(module, train.num_classes), features.params, head_params)
    confusion, examples = score_windows(logits_fn, features, val, config, stride=config.stride)
    timer.end("scoring")
    save_examples(examples, val.class_names, output)
    scores = count_images(dataset) | iou_scores(confusion, val.class_names)
    scores |= {"final_train_loss": float(losses[-_LAST_STEPS:].mean())}
    return Result(scores, describe_pixels(val, train), val.root, timer.seconds)


def check_colors(config: DistortionConfig, pixels: PixelFormat) -> None:
    """Raises ValueError if images without red, green and blue should get other colors."""
    if pixels.channels != 3 and (config.saturation or config.hue):
        raise ValueError(
            f"saturation={config.saturation}, hue={config.hue}: only red, green and blue have them, and these weights "
            f"are of images of {pixels.describe()}; set both to 0"
        )


def fit_head(
    features: FrozenFeatures, train: SegmentationSplit, config: LinearCropsConfig
) -> tuple[Any, Float[np.ndarray, " iterations"]]:
    """Returns the trained parameters of a head, and the loss of each step.

    Args:
        features: frozen backbone, and progress.
        train: images to learn from.
        config: settings of the protocol.

    Raises:
        ValueError: for a file that cannot be used, or if the loss becomes infinite or NaN.
    """
    init_fn, step_fn = make_trainer(features.module, train.num_classes, config)
    state = init_fn()
    batches = crop_batches(
        train,
        config,
        count=config.iterations,
        batch_size=config.batch_size,
        seed=config.seed,
        num_threads=features.budget.num_threads,
        pixels=features.module.pixels,
    )
    progress, losses = features.progress, []
    task = progress and progress.add_task(f"crops of {train.name}", total=config.iterations * config.batch_size)
    for number, batch in enumerate(batches):
        state, loss = step_fn(features.params, state, CropStep(*batch, number))
        # The step before is read while this one runs: no more than one is ahead.
        _check_loss(losses[-1:], number - 1, config)
        losses[-1:] = [float(one) for one in losses[-1:]]
        losses.append(loss)
        if progress is not None and task is not None:
            progress.advance(task, config.batch_size)
    _check_loss(losses[-1:], config.iterations - 1, config)
    return state.params, np.array([float(loss) for loss in losses])


# Cached, so that an evaluation of later weights compiles nothing anew.
@functools.lru_cache(maxsize=4)
def make_trainer(
    backbone: Backbone, num_classes: int, config: LinearCropsConfig
) -> tuple[Callable[[], HeadState], Callable[[Any, HeadState, CropStep], tuple[HeadState, Array]]]:
    """Returns the function that starts a head, and the one that trains it; see `init_head` and `make_step_fn`."""
    schedule = make_schedule(
        lr=config.lr, iterations=config.iterations, warmup_iterations=config.warmup_iterations, shape=config.schedule
    )
    head = DenseHead(num_classes, config.dropout)
    tx = optax.adamw(schedule, eps=EPSILON, weight_decay=config.weight_decay)
    init_fn = functools.partial(init_head, head, tx, width=backbone.width, seed=config.seed)
    return init_fn, make_step_fn(make_crop_encoder(backbone, config), head, tx, seed=config.seed)


def _check_loss(losses: list, number: int, config: LinearCropsConfig) -> None:
    if not np.isfinite(losses).all():
        raise ValueError(
            f"lr={config.lr}: the loss of the head is {float(losses[0])} in iteration {number}; lower lr, or use "
            "another checkpoint if its weights hold NaN"
        )


PROTOCOL = Protocol(
    name="linear_crops",
    title="Linear segmentation, augmented crops",
    description=(
        "The backbone is frozen, and a batch normalization with one linear layer learns to name the class of every "
        "pixel from patch features of randomly resized, cropped and recolored images, as DINOv2 and DINOv3 report it. "
        "Scored at the full size of the labels."
    ),
    config=LinearCropsConfig,
    open_dataset=open_pixel_splits,
    evaluate=evaluate,
    **IOU_SCORES,
    conventions={
        "tokens": "patch tokens after the final norm, computed anew for each crop",
        "head": f"batch normalization over the batch (epsilon {NORM_EPSILON}, momentum {MOMENTUM}), linear",
        "optimizer": f"AdamW, betas 0.9 and 0.999, epsilon {EPSILON}, decay of all parameters",
        "start": f"weights from a normal distribution of deviation {START_DEVIATION}, biases 0",
        "image_resize": "bilinear; in training, the shorter side to a whole number of pixels",
        "label_resize": "nearest in training; none in scoring",
        "padding": "zeros after normalization: right and below to the crop, around it to whole patches",
        "colors": "brightness, contrast, saturation, hue, each for half of the crops; contrast second or last; no "
        "rounding to 8 bits",
        "loss": "cross-entropy of bilinearly upsampled logits of all pixels; ignored ones count as 0 in the mean",
        "inference": "windows, logits averaged where they overlap, bilinear to the size of each label file",
        "ignored_label": 255,
        "miou": "percent, over the whole split, mean of the classes in labels or predictions",
    },
)
