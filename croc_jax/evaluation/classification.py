"""Linear classification: one linear layer reads the class of an image from its frozen feature."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Int
from rich.progress import Progress

from croc_jax.evaluation.datasets import ClassSplits, describe_classes, open_class_splits
from croc_jax.evaluation.features import FrozenFeatures, ImageFeatures, MemoryBudget, check_pooling
from croc_jax.evaluation.metrics import class_accuracy, class_ranks, top_accuracy
from croc_jax.evaluation.probe import LinearHead, ProbeFit, apply_head, fit_probe, make_sgd
from croc_jax.evaluation.registry import Protocol, Result, Timer, check_choice, check_positive, name_classes
from croc_jax.evaluation.whitening import NORMALIZATIONS, RELATIVE_FLOOR

REFERENCE_BATCH = 256
SCORED_AT_ONCE = 4096


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassificationConfig:
    """Every setting of linear classification that moves the score; the optimizer is that of DINO's eval_linear.

    Attributes:
        feature: "cls", "mean" or "cls_mean", see `FrozenFeatures.collect_pooled`.
        resize: pixels of the shorter side of a resized image.
        image_size: side of the square in its middle, in pixels.
        normalization: normalization of features by the statistics of the training features, see `fit_scale`.
        lr: learning rate at the start for a batch of 256; scales with the batch.
        weight_decay: weight decay of kernel and bias.
        epochs: passes over the training images.
        batch_size: images a step; at most the training images.
        seed: seed of the order of the images.
    """

    feature: str = "cls"
    resize: int = 256
    image_size: int = 224
    normalization: str = "none"
    lr: float = 0.001
    weight_decay: float = 0.0
    epochs: int = 100
    batch_size: int = 1024
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises ValueError, naming the field and the value, for settings that cannot work."""
        check_pooling(self.feature, self.resize, self.image_size)
        check_choice(self, "normalization", NORMALIZATIONS)
        check_positive(self, "lr", "epochs", "batch_size")


def evaluate(
    features: FrozenFeatures, dataset: ClassSplits, config: ClassificationConfig, output: Path | None = None
) -> Result:
    """Trains a linear layer on the features of one split and scores it on another; see `Protocol` for the arguments."""
    sizes = {"resize": config.resize, "image_size": config.image_size}
    timer, num_classes = Timer(), dataset.train.num_classes
    train, val = (features.collect_pooled(split, pooling=config.feature, **sizes) for split in dataset)
    timer.end("features")
    device_gib, progress = features.budget.device_gib, features.progress
    fit = fit_classifier(train, config, num_classes=num_classes, device_gib=device_gib, progress=progress)
    timer.end("training")
    ranks = classifier_ranks(fit.head, val)
    timer.end("scoring")
    per_class = class_accuracy(ranks, val.labels, num_classes=num_classes)
    scores = {
        "top1": top_accuracy(ranks, 1),
        "top5": top_accuracy(ranks, 5),
        "class_accuracy": name_classes(dataset.val.class_names, per_class),
        "final_train_loss": float(fit.losses[-1]),
    }
    return Result(scores, describe_classes(dataset), dataset.val.root, timer.seconds)


def fit_classifier(
    data: ImageFeatures,
    config: ClassificationConfig,
    *,
    num_classes: int,
    device_gib: float = MemoryBudget.device_gib,
    progress: Progress | None = None,
) -> ProbeFit:
    """Trains the layer with cross-entropy, by SGD with a cosine that steps once an epoch (DINO's eval_linear).

    Args:
        data: training features and classes.
        config: settings of the protocol.
        num_classes: outputs of the layer.
        device_gib: see `fit_probe`.
        progress: shows the epochs.
    """
    batch_size = min(config.batch_size, len(data.labels))
    steps_per_epoch = len(data.labels) // batch_size
    cosine = optax.cosine_decay_schedule(config.lr * batch_size / REFERENCE_BATCH, config.epochs)
    return fit_probe(
        data.features,
        data.labels,
        lambda logits, labels: jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels)),
        make_sgd(lambda step: cosine(jnp.asarray(step) // steps_per_epoch), config.weight_decay),
        num_classes=num_classes,
        normalization=config.normalization,
        epochs=config.epochs,
        batch_size=batch_size,
        seed=config.seed,
        device_gib=device_gib,
        progress=progress,
    )


def classifier_ranks(head: LinearHead, data: ImageFeatures) -> Int[np.ndarray, " n"]:
    """Returns the rank of the true class of each image among the logits, a few thousand images at a time."""
    rank_fn = jax.jit(lambda head, features, labels: class_ranks(apply_head(head, features), labels))
    parts = [slice(start, start + SCORED_AT_ONCE) for start in range(0, len(data.labels), SCORED_AT_ONCE)]
    return np.concatenate([np.asarray(rank_fn(head, data.features[part], data.labels[part])) for part in parts])


PROTOCOL = Protocol(
    name="classification",
    title="Linear classification",
    description="The backbone is frozen, and a linear layer learns to name the class of an image.",
    config=ClassificationConfig,
    open_dataset=open_class_splits,
    evaluate=evaluate,
    main_score="top1",
    score_labels={"top1": "top-1", "top5": "top-5"},
    class_scores="class_accuracy",
    class_label="Top-1 accuracy (%)",
    conventions={
        "image_resize": "shorter side, bicubic, antialiased; center crop; the same in training: no augmentation",
        "tokens": "of the last block, after the final norm; float32",
        "lr": f"scaled by batch_size / {REFERENCE_BATCH}; cosine to 0, constant within an epoch",
        "optimizer": "SGD, momentum 0.9, coupled weight decay",
        "last_batch": "dropped if incomplete",
        "start": "zeros",
        "normalization_floor": RELATIVE_FLOOR,
        "score": "after the last epoch",
    },
)
