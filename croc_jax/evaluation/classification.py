"""Linear classification: how well one linear layer reads the class of an image from its frozen feature."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int
from rich.progress import Progress

from croc_jax.data.labeled.classes import ClassificationSplit
from croc_jax.evaluation.accuracy import class_accuracy, class_ranks, top_accuracy
from croc_jax.evaluation.features import FrozenFeatures, ImageFeatures, MemoryBudget, check_pooling
from croc_jax.evaluation.linear import LinearHead, apply_head
from croc_jax.evaluation.normalization import NORMALIZATIONS, token_scale

PRECISION = jax.lax.Precision.HIGHEST
REFERENCE_BATCH = 256
SCORED_AT_ONCE = 4096


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassificationProtocol:
    """Every setting of the protocol that moves the score; the optimizer is that of DINO's eval_linear.

    Attributes:
        feature: "cls", "mean" or "cls_mean", see `FrozenFeatures.collect_pooled`.
        resize: pixels of the shorter side of an image.
        image_size: of the square in its middle.
        normalization: of features by the statistics of the training features, see `token_scale`.
        lr: at the start, for a batch of 256; scales with the batch.
        weight_decay: of weights and bias.
        epochs: passes over the training images.
        batch_size: images a step; at most the training images.
        seed: of the order of the images.
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
        if self.normalization not in NORMALIZATIONS:
            raise ValueError(f"normalization={self.normalization!r}: choose one of {', '.join(NORMALIZATIONS)}")
        for name in ("lr", "epochs", "batch_size"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)}: must be positive")


class ClassificationScore(NamedTuple):
    """The result of linear classification, in percent.

    Attributes:
        top1: share of images whose class has the largest logit.
        top5: share whose class has one of the five largest.
        class_accuracy: top-1 of each class; NaN for a class without images.
        losses: mean training loss of each epoch.
        seconds: of each phase.
    """

    top1: float
    top5: float
    class_accuracy: Float[np.ndarray, " k"]
    losses: Float[np.ndarray, " epochs"]
    seconds: dict[str, float]


def evaluate_classification(
    features: FrozenFeatures, *, train: ClassificationSplit, val: ClassificationSplit, protocol: ClassificationProtocol
) -> ClassificationScore:
    """Trains a linear layer on the frozen features of one split and scores it on another.

    Args:
        features: of the backbone.
        train: images for the layer.
        val: images for the score.
        protocol: every setting that moves the score.

    Raises:
        ValueError: if whole patches do not tile the protocol's images.
        LabeledDataError: for an image that cannot be read.
    """
    sizes = {"resize": protocol.resize, "image_size": protocol.image_size}
    clock = [time.perf_counter()]
    data, scored = (features.collect_pooled(split, pooling=protocol.feature, **sizes) for split in (train, val))
    clock.append(time.perf_counter())
    limits = {"num_classes": train.num_classes, "device_gib": features.budget.device_gib}
    head, losses = fit_classifier(data, protocol, **limits, progress=features.progress)
    clock.append(time.perf_counter())
    ranks = classifier_ranks(head, scored)
    clock.append(time.perf_counter())
    seconds = {phase: clock[i + 1] - clock[i] for i, phase in enumerate(("features", "training", "scoring"))}
    per_class = class_accuracy(ranks, scored.labels, num_classes=train.num_classes)
    return ClassificationScore(top_accuracy(ranks, 1), top_accuracy(ranks, 5), per_class, losses, seconds)


def fit_classifier(
    data: ImageFeatures,
    protocol: ClassificationProtocol,
    *,
    num_classes: int,
    device_gib: float = MemoryBudget.device_gib,
    progress: Progress | None = None,
) -> tuple[LinearHead, Float[np.ndarray, " epochs"]]:
    """Trains the layer with cross-entropy.

    Args:
        data: training features and classes.
        protocol: the settings.
        num_classes: outputs of the layer.
        device_gib: of features that go to the device at once.
        progress: shows the epochs.

    Returns:
        The layer, for features as they come from the backbone, and the mean loss of each epoch.
    """
    count = len(data.labels)
    batch_size = min(protocol.batch_size, count)
    steps = count // batch_size
    scale = token_scale(data.features[:, None, None], protocol.normalization)
    tx = make_optimizer(protocol, batch_size=batch_size, steps_per_epoch=steps)
    train_fn = _make_train_fn(tx, scale.mean, scale.transform)
    head = LinearHead(jnp.zeros((data.features.shape[1], num_classes)), jnp.zeros(num_classes))
    opt_state, losses = tx.init(head), []
    epochs = range(protocol.epochs)
    for epoch in progress.track(epochs, description="linear layer") if progress else epochs:
        order = np.random.default_rng((protocol.seed, epoch)).permutation(count)[: steps * batch_size]
        epoch_losses = []
        for features, labels in _pieces(data, order.reshape(steps, batch_size), device_gib * 2**30):
            head, opt_state, batch_losses = train_fn(head, opt_state, features, labels)
            epoch_losses.append(batch_losses)
            jax.block_until_ready(epoch_losses[-2:-1])
        losses.append(np.concatenate(epoch_losses).mean())
    kernel = jnp.matmul(scale.transform, head.kernel, precision=PRECISION)
    bias = head.bias - jnp.matmul(scale.mean, kernel, precision=PRECISION)
    return LinearHead(kernel, bias), np.array(losses)


def make_optimizer(
    protocol: ClassificationProtocol, *, batch_size: int, steps_per_epoch: int
) -> optax.GradientTransformation:
    """Returns SGD with a cosine that steps once an epoch, as PyTorch's CosineAnnealingLR does in DINO's evaluation."""
    cosine = optax.cosine_decay_schedule(protocol.lr * batch_size / REFERENCE_BATCH, protocol.epochs)
    sgd = optax.sgd(lambda step: cosine(jnp.asarray(step) // steps_per_epoch), momentum=0.9)
    return optax.chain(optax.add_decayed_weights(protocol.weight_decay), sgd)


def classifier_ranks(head: LinearHead, data: ImageFeatures) -> Int[np.ndarray, " n"]:
    """Returns where the true class of each image ranks among the logits; a few thousand images at a time."""
    rank_fn = jax.jit(lambda head, features, labels: class_ranks(apply_head(head, features), labels))
    parts = [slice(start, start + SCORED_AT_ONCE) for start in range(0, len(data.labels), SCORED_AT_ONCE)]
    return np.concatenate([np.asarray(rank_fn(head, data.features[part], data.labels[part])) for part in parts])


def _make_train_fn(tx: optax.GradientTransformation, mean: Array, transform: Array) -> Callable:
    """Returns a jitted function that takes one step a batch of features `[s b d]` and labels `[s b]`."""

    def loss_fn(head: LinearHead, features: Array, labels: Array) -> Array:
        scaled = jnp.matmul(features - mean, transform, precision=PRECISION)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(apply_head(head, scaled), labels))

    def step(carry: tuple, batch: tuple[Array, Array]) -> tuple[tuple, Array]:
        head, opt_state = carry
        loss, gradients = jax.value_and_grad(loss_fn)(head, *batch)
        updates, opt_state = tx.update(gradients, opt_state, head)
        return (optax.apply_updates(head, updates), opt_state), loss

    @jax.jit
    def train_fn(head: LinearHead, opt_state: Any, features: Array, labels: Array) -> tuple:
        (head, opt_state), losses = jax.lax.scan(step, (head, opt_state), (features, labels))
        return head, opt_state, losses

    return train_fn


def _pieces(data: ImageFeatures, order: Int[np.ndarray, "s b"], device_bytes: float) -> Iterator[tuple]:
    """Yields features and labels of as many batches as fit the device beside those before them."""
    batch_bytes = order.shape[1] * data.features[0].nbytes
    batches = max(int(device_bytes / 2) // batch_bytes, 1)
    for start in range(0, len(order), batches):
        rows = order[start : start + batches]
        yield data.features[rows], data.labels[rows]
