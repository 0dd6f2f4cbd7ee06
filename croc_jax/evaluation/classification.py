"""Linear classification: one linear layer reads the class of an image from its frozen feature."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array
from rich.progress import Progress

from croc_jax.evaluation.datasets import ClassSplits, count_classified, describe_classes, open_class_splits
from croc_jax.evaluation.features import FrozenFeatures, ImageFeatures, MemoryBudget
from croc_jax.evaluation.metrics import Ranks, class_accuracy, class_ranks, name_classes, top_accuracy
from croc_jax.evaluation.probe import LinearHead, ProbeFit, apply_head, fit_probe, make_sgd
from croc_jax.evaluation.registry import Protocol, Result, Timer
from croc_jax.evaluation.settings import PoolingConfig, ProbeConfig
from croc_jax.evaluation.whitening import RELATIVE_FLOOR

REFERENCE_BATCH = 256
SCORED_AT_ONCE = 4096


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassificationConfig(PoolingConfig, ProbeConfig):
    """Every setting of linear classification that moves the score; the optimizer is that of DINO's eval_linear.

    Attributes:
        lr: learning rate at the start for a batch of 256; scales with the batch.
    """

    normalization: str = "none"
    lr: float = 0.001
    epochs: int = 100
    batch_size: int = 1024

    def __post_init__(self) -> None:
        """Raises ValueError, naming the field and the value, for settings that cannot work."""
        PoolingConfig.__post_init__(self)
        ProbeConfig.__post_init__(self)


def evaluate(
    features: FrozenFeatures, dataset: ClassSplits, config: ClassificationConfig, output: Path | None = None
) -> Result:
    """Trains a linear layer on the features of one split and scores it on another; see `Protocol` for the arguments."""
    timer, num_classes = Timer(), dataset.train.num_classes
    train, val = (features.collect_pooled(split, config) for split in dataset)
    timer.end("features")
    device_gib, progress = features.budget.device_gib, features.progress
    fit = fit_classifier(train, config, num_classes=num_classes, device_gib=device_gib, progress=progress)
    timer.end("training")
    ranks = classifier_ranks(fit.head, val)
    timer.end("scoring")
    per_class = class_accuracy(ranks.true, val.labels, num_classes=num_classes)
    scores = {
        "top1": top_accuracy(ranks.true, 1),
        "top5": top_accuracy(ranks.true, 5),
        **count_classified(dataset, train.labels, val.labels, ranks.predicted),
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

    Arguments as for `fit_probe`.
    """
    batch_size = min(config.batch_size, len(data.labels))
    steps_per_epoch = len(data.labels) // batch_size
    cosine = optax.cosine_decay_schedule(config.lr * batch_size / REFERENCE_BATCH, config.epochs)
    return fit_probe(
        *data,
        lambda logits, labels: jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels)),
        make_sgd(lambda step: cosine(jnp.asarray(step) // steps_per_epoch), config.weight_decay),
        config,
        num_classes=num_classes,
        device_gib=device_gib,
        progress=progress,
    )


def classifier_ranks(head: LinearHead, data: ImageFeatures) -> Ranks:
    """Returns the rank of the true class of each image among the logits, a few thousand images at a time."""

    @jax.jit
    def rank_fn(head: LinearHead, features: Array, labels: Array) -> tuple[Array, Array]:
        logits = apply_head(head, features)
        return class_ranks(logits, labels), jnp.argmax(logits, axis=1)

    parts = [slice(start, start + SCORED_AT_ONCE) for start in range(0, len(data.labels), SCORED_AT_ONCE)]
    found = [jax.device_get(rank_fn(head, data.features[part], data.labels[part])) for part in parts]
    return Ranks(*map(np.concatenate, zip(*found, strict=True)))


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
