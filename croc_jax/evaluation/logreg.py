"""Logistic regression on patch features, as CAPI's official evaluation: one linear classifier of single patches."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from rich.progress import Progress

from croc_jax.data.labeled.label_files import IGNORED
from croc_jax.evaluation.datasets import PixelSplits, count_images, describe_pixels, open_pixel_splits
from croc_jax.evaluation.features import FrozenFeatures, LabeledTokens
from croc_jax.evaluation.logistic import UNLABELED, Limits, Scale, apply_scaled, fit_logistic, make_chunks
from croc_jax.evaluation.metrics import IOU_SCORES, confusion_matrix, iou_scores, mean_iou
from croc_jax.evaluation.patch_memory import cut_patches
from croc_jax.evaluation.pixel_scoring import score_predictions
from croc_jax.evaluation.probe import LinearHead
from croc_jax.evaluation.registry import Protocol, Result, Timer
from croc_jax.evaluation.settings import check_positive
from croc_jax.evaluation.visualize import save_examples
from croc_jax.evaluation.whitening import fit_scale


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogregConfig:
    """Every setting of logistic regression on patches that moves the score; the defaults are CAPI's.

    Attributes:
        image_size: height and width that images and labels are resized to, in whole patches.
        c_values: inverse strengths of the L2 penalty to choose from, scikit-learn's C.
        validation_share: share of the training images that chooses among them, by mean IoU; they are learned from in
            the end, too.
        max_iterations: most iterations of L-BFGS.
        tolerance: largest derivative that ends it.
        memory: pairs of vectors that L-BFGS keeps.
        seed: seed of the choice of validation images.
    """

    image_size: tuple[int, int] = (224, 224)
    c_values: tuple[float, ...] = tuple(float(value) for value in 10 ** np.linspace(-6, 5, 8))
    validation_share: float = 0.1
    max_iterations: int = 1000
    tolerance: float = 1e-12
    memory: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises ValueError, naming the field and the value, for settings that cannot work."""
        check_positive(self, "max_iterations", "memory")
        if not self.c_values or min(self.c_values) <= 0:
            raise ValueError(f"c_values={self.c_values}: give positive numbers")
        if not (len(self.image_size) == 2 and min(self.image_size) > 0):
            raise ValueError(f"image_size={self.image_size}: give height and width in pixels")
        if not 0 < self.validation_share < 1:
            raise ValueError(f"validation_share={self.validation_share}: a share lies between 0 and 1")


class PatchClassifier(NamedTuple):
    """A layer on normalized features, their normalization, and the class of each output of the layer."""

    head: LinearHead
    scale: Scale
    classes: UInt8[np.ndarray, " k"]


def evaluate(
    features: FrozenFeatures, dataset: PixelSplits, config: LogregConfig, output: Path | None = None
) -> Result:
    """Fits a classifier to the patches of one split and scores it on another; see `Protocol` for the arguments."""
    train, val = dataset
    timer, size = Timer(), config.image_size
    # The first of the shuffled images choose C: then each part of the features is contiguous.
    order = np.random.default_rng(config.seed).permutation(len(train))
    shuffled = dataclasses.replace(train, pairs=tuple(train.pairs[index] for index in order))
    data = features.collect_tokens(shuffled, image_size=size, label_size=size)
    timer.end("features")
    classifier, best_c, c_scores = fit_patches(features, data, config, num_classes=train.num_classes)
    timer.end("training")
    pairs = (
        pair
        for tokens, labels in features.token_batches(val, image_size=size, label_size=size)
        for pair in zip(labels, predict_pixels(classifier, tokens, size), strict=False)
    )
    confusion, examples = score_predictions(pairs, val, image_size=size, pixels=features.module.pixels)
    timer.end("scoring")
    save_examples(examples, val.class_names, output)
    scores = count_images(dataset) | iou_scores(confusion, val.class_names) | {"best_c": best_c, "c_miou": c_scores}
    return Result(scores, describe_pixels(val, train), val.root, timer.seconds)


def fit_patches(
    features: FrozenFeatures, data: LabeledTokens, config: LogregConfig, *, num_classes: int
) -> tuple[PatchClassifier, float, dict[str, float]]:
    """Returns a classifier of patches, its C, and the mean IoU of each C on validation images.

    Features are normalized by mean and deviation of the images that do not choose C. A patch has the class of most of
    its pixels, and none where most are ignored.

    Args:
        features: limits of memory, and progress.
        data: shuffled training tokens, and labels of the size of the images.
        config: settings of the protocol.
        num_classes: number of classes.

    Raises:
        ValueError: for too few images to choose C, or fewer than two classes of patches.
    """
    count, grid = num_validation(len(data.tokens), config), data.tokens.shape[1:3]
    labels = np.stack([patch_classes(ids, grid) for ids in data.labels])
    mean, transform = fit_scale(data.tokens[count:], "standardize")
    scale = Scale(mean, jnp.diagonal(transform))

    def fit(first: int, c: float, start: LinearHead | None) -> PatchClassifier:
        classes = present_classes(labels[first:])
        targets = np.full(256, UNLABELED, np.int32)
        targets[classes] = np.arange(len(classes))
        rows = targets[labels[first:]].ravel()
        tokens, device_bytes = data.tokens[first:], round(features.budget.device_gib * 2**30)
        most, labeled = config.max_iterations, int(np.sum(rows != UNLABELED))
        with count_iterations(features.progress, f"L-BFGS, C={c:g}", at_most=most) as tell:
            head = fit_logistic(
                make_chunks(tokens.reshape(len(rows), -1), rows, device_bytes=device_bytes),
                scale,
                Limits(most, config.tolerance, config.memory),
                c=c,
                num_classes=len(classes),
                num_labeled=labeled,
                start=start if start is not None and start.bias.shape == classes.shape else None,
                tell=tell,
            )
        return PatchClassifier(head, scale, classes)

    scores, start = {}, None
    for c in config.c_values if count else ():
        classifier = fit(count, c, start)
        scores[c], start = validate(classifier, data, count, config, num_classes=num_classes), classifier.head
    best = max(scores, key=scores.__getitem__, default=config.c_values[0])
    return fit(0, best, start), best, {f"{c:g}": score for c, score in scores.items()}


@contextlib.contextmanager
def count_iterations(
    progress: Progress | None, description: str, *, at_most: int
) -> Iterator[Callable[[], object] | None]:
    """Yields a function that advances a new progress bar by one, if there are progress bars."""
    if progress is None:
        yield None
        return
    task = progress.add_task(description, total=at_most)
    yield functools.partial(progress.advance, task)
    # Most often it converges before.
    progress.update(task, completed=at_most)


def num_validation(num_images: int, config: LogregConfig) -> int:
    """Returns the number of images that choose C; ValueError if there is none, or no other."""
    if len(config.c_values) == 1:
        return 0
    count = int(num_images * config.validation_share)
    if not 0 < count < num_images:
        raise ValueError(
            f"validation_share={config.validation_share}: {count} of {num_images} training images would choose C; "
            "change the share, or give one value in c_values"
        )
    return count


def validate(
    classifier: PatchClassifier, data: LabeledTokens, count: int, config: LogregConfig, *, num_classes: int
) -> float:
    """Returns the mean IoU on the first images, in percent."""
    confusion = np.zeros((num_classes, num_classes), np.int64)
    for index in range(count):
        prediction = predict_pixels(classifier, data.tokens[index : index + 1], config.image_size)[0]
        confusion += confusion_matrix(data.labels[index], prediction, num_classes=num_classes)
    return 100 * mean_iou(confusion)


def patch_classes(ids: UInt8[np.ndarray, "H W"], grid: tuple[int, int]) -> UInt8[np.ndarray, "r c"]:
    """Returns the most frequent id of each patch, the lowest of equally frequent ones."""
    rows, columns = grid
    index = cut_patches(ids, grid) + 256 * np.arange(rows * columns)[:, None]
    counts = np.bincount(index.ravel(), minlength=256 * rows * columns).reshape(rows, columns, 256)
    return counts.argmax(axis=-1).astype(np.uint8)


def present_classes(labels: UInt8[np.ndarray, "..."]) -> UInt8[np.ndarray, " k"]:
    """Returns the classes that occur; ValueError for fewer than two."""
    classes = np.setdiff1d(labels, [IGNORED]).astype(np.uint8)
    if len(classes) < 2:
        raise ValueError(
            f"most pixels of every training patch are of the class {classes.tolist()} or ignored: with fewer than two "
            "classes of patches there is nothing to learn"
        )
    return classes


def predict_pixels(
    classifier: PatchClassifier, tokens: Float[Array | np.ndarray, "b r c d"], size: tuple[int, int]
) -> UInt8[np.ndarray, "b H W"]:
    """Returns the class of each pixel: that of its patch."""
    logits = apply_scaled(classifier.head, classifier.scale, jnp.asarray(tokens))
    patches = classifier.classes[np.asarray(jnp.argmax(logits, axis=-1))]
    return patches.repeat(size[0] // patches.shape[1], axis=1).repeat(size[1] // patches.shape[2], axis=2)


PROTOCOL = Protocol(
    name="logreg",
    title="Logistic regression on patches",
    description=(
        "The backbone is frozen, and a logistic regression learns to name the class of a patch from its features, as "
        "CAPI reports it; all pixels of a patch get its class. No augmentation, no upsampling."
    ),
    config=LogregConfig,
    open_dataset=open_pixel_splits,
    evaluate=evaluate,
    **IOU_SCORES,
    conventions={
        "tokens": "patch tokens after the final norm, float16",
        "image_resize": "bicubic, antialiased",
        "label_resize": "nearest",
        "normalization": "mean and deviation of each feature over the training images that do not choose C",
        "patch_class": "most frequent id of its pixels, the lowest of equally frequent ones; not learned where ignored",
        "objective": "scikit-learn's LogisticRegression: L2 penalty of the weights alone, softmax",
        "solver": "L-BFGS of SciPy from the optimum of the C before, loss and gradient in float32, sums in float64",
        "prediction": "all pixels of a patch get its class, at the size of the resized images",
        "ignored_label": 255,
        "miou": "percent, over the whole split, mean of the classes in labels or predictions",
    },
)
