"""Linear segmentation: one linear layer reads the class of every pixel from frozen patch tokens."""

import dataclasses
from pathlib import Path

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, UInt8
from rich.progress import Progress

from croc_jax.data.labeled.label_files import IGNORED
from croc_jax.evaluation.datasets import PixelSplits, count_images, describe_pixels, open_pixel_splits
from croc_jax.evaluation.features import FrozenFeatures, LabeledTokens, MemoryBudget
from croc_jax.evaluation.interpolation import bilinear_matrix, resize_with
from croc_jax.evaluation.metrics import IOU_SCORES, iou_scores
from croc_jax.evaluation.pixel_scoring import score_split
from croc_jax.evaluation.probe import ProbeFit, apply_head, fit_probe, make_sgd
from croc_jax.evaluation.registry import Protocol, Result, Timer
from croc_jax.evaluation.settings import ProbeConfig, check_choice
from croc_jax.evaluation.visualize import save_examples
from croc_jax.evaluation.whitening import RELATIVE_FLOOR


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentationConfig(ProbeConfig):
    """Every setting of linear segmentation that moves the score.

    Attributes:
        image_size: height and width that images are resized to, in whole patches.
        train_size: height and width of the labels, and of the upsampled logits, in training.
        score_size: height and width of the labels in scoring; None scores at the size of each label file.
        optimizer: "sgd" (momentum 0.9, coupled weight decay) or "adamw" (decoupled).
        schedule: "step" multiplies lr by 0.1 at each of `drop_epochs`, "cosine" ends at 0.
        drop_epochs: epochs of the schedule "step".
    """

    image_size: tuple[int, int] = (240, 320)
    train_size: tuple[int, int] = (60, 80)
    score_size: tuple[int, int] | None = None
    optimizer: str = "adamw"
    schedule: str = "cosine"
    drop_epochs: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Raises ValueError, naming the field and the value, for settings that cannot work."""
        super().__post_init__()
        check_choice(self, "optimizer", ("sgd", "adamw"))
        check_choice(self, "schedule", ("step", "cosine"))
        for name in ("image_size", "train_size", "score_size"):
            size = getattr(self, name)
            if size is not None and not (len(size) == 2 and min(size) > 0):
                raise ValueError(f"{name}={size}: give height and width in pixels")


def evaluate(
    features: FrozenFeatures, dataset: PixelSplits, config: SegmentationConfig, output: Path | None = None
) -> Result:
    """Trains a linear layer on the tokens of one split and scores it on another; see `Protocol` for the arguments."""
    train, val = dataset
    timer = Timer()
    data = features.collect_tokens(train, image_size=config.image_size, label_size=config.train_size)
    timer.end("features")
    device_gib, progress = features.budget.device_gib, features.progress
    fit = fit_segmentation(data, config, num_classes=train.num_classes, device_gib=device_gib, progress=progress)
    timer.end("training")
    sizes = {"image_size": config.image_size, "label_size": config.score_size}
    confusion, examples = score_split(lambda tokens: apply_head(fit.head, tokens), features, val, **sizes)
    timer.end("scoring")
    save_examples(examples, val.class_names, output)
    scores = (
        count_images(dataset) | iou_scores(confusion, val.class_names) | {"final_train_loss": float(fit.losses[-1])}
    )
    return Result(scores, describe_pixels(val, train), val.root, timer.seconds)


def fit_segmentation(
    data: LabeledTokens,
    config: SegmentationConfig,
    *,
    num_classes: int,
    device_gib: float = MemoryBudget.device_gib,
    progress: Progress | None = None,
) -> ProbeFit:
    """Trains the layer with cross-entropy on bilinearly upsampled logits.

    Args:
        data: training tokens, and labels of the size `config.train_size`.
        config: settings of the protocol.
        num_classes: outputs of the layer.
        device_gib: see `fit_probe`.
        progress: see `fit_probe`.
    """
    rows, columns = map(bilinear_matrix, data.tokens.shape[1:3], config.train_size)
    return fit_probe(
        *data,
        lambda logits, labels: masked_cross_entropy(resize_with(rows, columns, logits), labels),
        make_optimizer(config, steps_per_epoch=max(len(data.tokens) // config.batch_size, 1)),
        config,
        num_classes=num_classes,
        device_gib=device_gib,
        progress=progress,
    )


def make_optimizer(config: SegmentationConfig, *, steps_per_epoch: int) -> optax.GradientTransformation:
    """Returns the optimizer of a config."""
    if config.schedule == "cosine":
        schedule = optax.cosine_decay_schedule(config.lr, config.epochs * steps_per_epoch)
    else:
        drops = {epoch * steps_per_epoch: 0.1 for epoch in config.drop_epochs}
        schedule = optax.piecewise_constant_schedule(config.lr, drops)
    if config.optimizer == "adamw":
        return optax.adamw(schedule, weight_decay=config.weight_decay)
    return make_sgd(schedule, config.weight_decay)


def masked_cross_entropy(logits: Float[Array, "*b k"], labels: UInt8[Array, "*b"]) -> Float[Array, ""]:
    """Returns the mean cross-entropy over the pixels that count; 0 if none does."""
    counted = labels != IGNORED
    targets = jnp.where(counted, labels, 0).astype(jnp.int32)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return jnp.sum(losses * counted) / jnp.maximum(counted.sum(), 1)


PROTOCOL = Protocol(
    name="linear",
    title="Linear segmentation",
    description=(
        "The backbone is frozen, and a single linear layer learns to name the class of every pixel from its patch "
        "features. Where random weights are among the rows, the difference is what training found without labels. "
        "Scored on images that neither has seen; 100% would be perfect."
    ),
    config=SegmentationConfig,
    open_dataset=open_pixel_splits,
    evaluate=evaluate,
    **IOU_SCORES,
    conventions={
        "tokens": "patch tokens after the final norm, float16",
        "image_resize": "bicubic, antialiased",
        "label_resize": "nearest",
        "upsampling": "bilinear logits, half-pixel centers",
        "ignored_label": 255,
        "start": "zeros",
        "normalization_floor": RELATIVE_FLOOR,
        "miou": "percent, over the whole split, mean of the classes in labels or predictions",
    },
)
