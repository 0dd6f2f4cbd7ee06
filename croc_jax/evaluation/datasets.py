"""Opens the labeled splits that a config names, refuses those that no score can come from, and describes them."""

import dataclasses
import filecmp
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Int

from croc_jax.data.labeled import open_labeled
from croc_jax.data.labeled.classes import ClassificationSplit, open_classes
from croc_jax.data.labeled.label_files import IGNORED
from croc_jax.data.labeled.object_masks import summarize_ids
from croc_jax.data.labeled.segmentation import SegmentationSplit, check_found
from croc_jax.data.sources.combined import CombinedSource
from croc_jax.data.sources.identity import digest_files, identify
from croc_jax.data.sources.tfds import TfdsSource

# Halves of the images to score.
PARTS = ("tuning", "reporting")
T = TypeVar("T", bound=tuple | str)


class PixelSplits(NamedTuple):
    """Images with pixel labels: to learn from, and to score."""

    train: SegmentationSplit
    val: SegmentationSplit


class ClassSplits(NamedTuple):
    """Images with one class each: to learn from, and to score."""

    train: ClassificationSplit
    val: ClassificationSplit


def open_pixel_splits(
    *,
    root: str | Path,
    train_split: str,
    val_split: str,
    num_classes: int | None = None,
    train_fraction: float = 1,
    val_part: str = "all",
) -> PixelSplits:
    """Opens both splits of a data set with pixel labels, of the scored one perhaps a half (see `take_part`).

    Raises:
        ValueError: as `open_labeled`, for labels that no score can come from (see `check_labels`), or for a split
            that is scored on its own training images.
    """
    check_splits_differ(train_split, val_split)
    common = {"num_classes": num_classes, "train_split": train_split}
    train = open_labeled(root, train_split, fraction=train_fraction, **common)
    val = take_part(open_labeled(root, val_split, **common), val_part)
    check_labels(train, val)
    check_images_differ(*(((pair.image.name, str(pair.image)) for pair in split.pairs) for split in (train, val)))
    return PixelSplits(train, val)


def open_pixel_split(
    *, root: str | Path, train_split: str, val_split: str, num_classes: int | None = None, val_part: str = "all"
) -> SegmentationSplit:
    """Opens the scored split alone; ValueError as `open_pixel_splits`."""
    val = take_part(open_labeled(root, val_split, num_classes=num_classes, train_split=train_split), val_part)
    check_labels(val)
    return val


def take_part(split: SegmentationSplit, part: str) -> SegmentationSplit:
    """Returns a half of a split's images in the order of their names (see `choose_part`), named after it, or all."""
    if part == "all":
        return split
    return dataclasses.replace(split, name=f"{split.name}[{part} half]", pairs=tuple(choose_part(split.pairs, part)))


def choose_part(items: Sequence[T], part: str) -> Sequence[T]:
    """Returns the items to score: all of them, or a half in their sorted order.

    Settings are chosen by scores of the first half, "tuning", and results published on the second, "reporting". The
    halves are consecutive, because neighbors of a sorted list may be frames of one film.

    Examples:
        >>> [choose_part(["b", "c", "a"], part) for part in ("all", "tuning", "reporting")]
        [['b', 'c', 'a'], ['a'], ['b', 'c']]

    Raises:
        ValueError: for another part, or a half of less than two items.
    """
    if part not in ("all", *PARTS):
        raise ValueError(f"val_part={part!r}: choose 'all', {', '.join(map(repr, PARTS))}")
    if part == "all":
        return items
    if len(items) < 2:
        raise ValueError(f"val_part={part!r}: {len(items)} to score cannot be halved; choose 'all'")
    half = len(items) // 2
    return sorted(items)[:half] if part == "tuning" else sorted(items)[half:]


def open_class_splits(*, root: str | Path, train_split: str, val_split: str) -> ClassSplits:
    """Opens both splits of a data set with one class an image.

    Raises:
        ValueError: as `open_classes`, for classes that no score can come from (see `check_classes`), or for a split
            that is scored on its own training images.
    """
    check_splits_differ(train_split, val_split)
    train, val = (open_classes(root, split, train_split=train_split) for split in (train_split, val_split))
    if isinstance(train.source, TfdsSource):
        # Its labels lie in the records with the images: they are checked once these have been read.
        return ClassSplits(train, val)
    train_labels, val_labels = (np.array([of.label_of(index) for index in range(len(of))]) for of in (train, val))
    check_classes(train_labels, val_labels, train.class_names)
    check_images_differ(_class_files(train), _class_files(val))
    return ClassSplits(train, val)


def _class_files(split: ClassificationSplit) -> Iterable[tuple[str, str]]:
    """Yields each image as CLASS/NAME, and its file."""
    folder, files = f"{split.root / split.name}/", (split.source.name(index) for index in range(len(split)))
    return ((file.removeprefix(folder), file) for file in files)


def check_splits_differ(train_split: str, val_split: str) -> None:
    """Raises ValueError if the images to score are those to learn from."""
    if train_split == val_split:
        raise ValueError(
            f"train_split and val_split are both {val_split!r}: a score on training images is no evaluation; "
            "name two splits"
        )


def check_images_differ(train: Iterable[tuple[str, str]], val: Iterable[tuple[str, str]]) -> None:
    """Raises ValueError if all images to score are files to learn from, through links or lists; both by name."""
    known, scored = dict(train), dict(val)
    if all(name in known and _is_same(known[name], file) for name, file in scored.items()):
        raise ValueError(
            f"all {len(scored)} images to score, such as {next(iter(scored.values()))}, are training images, too: a "
            "score on training images is no evaluation; name other splits"
        )


def scored_files(dataset: Any) -> list[Path]:
    """Returns the image files to score of what a protocol for pixel labels or videos has opened."""
    if videos := getattr(dataset, "videos", None):
        return [frame for video in videos for frame in video.frames]
    return [pair.image for pair in getattr(dataset, "val", dataset).pairs]


def check_never_trained_on(trained: Iterable[str], scored: Iterable[Path]) -> None:
    """Raises ValueError if an image to score is one of pre-training, too: the same file, or one with the same bytes.

    Args:
        trained: names of the images of pre-training; those that are no files are not compared.
        scored: files to score.
    """
    by_size: dict[int, list[str]] = {}
    for name in filter(os.path.isfile, trained):
        by_size.setdefault(os.path.getsize(name), []).append(name)
    for file in scored:
        for name in by_size.get(file.stat().st_size, ()):
            if filecmp.cmp(file, name, shallow=False):
                raise ValueError(
                    f"{file}, an image to score, is {name} of the images of pre-training: a score on training images "
                    "is no evaluation; train on other images"
                )


def _is_same(file: str, other: str) -> bool:
    return os.path.isfile(file) and os.path.isfile(other) and os.path.samefile(file, other)


def check_labels(*splits: SegmentationSplit) -> None:
    """Reads labels until each split has shown two classes, and all splits one in common.

    Raises:
        ValueError: for a split of fewer than two classes, splits without a common class, or unusable labels.
    """
    found: list[set[int]] = [set() for _ in splits]
    for index in range(max(map(len, splits))):
        for split, ids in zip(splits, found, strict=True):
            if index < len(split):
                ids.update(np.unique(split.load_labels(index, pixels=None)).tolist())
        if min(len(ids - {IGNORED}) for ids in found) > 1 and set.intersection(*found) - {IGNORED}:
            return
    held = [check_found(ids, where=str(split.pairs[0].label.parent)) for split, ids in zip(splits, found, strict=True)]
    names = (summarize_ids([split.class_names[index] for index in of]) for split, of in zip(splits, held, strict=True))
    raise ValueError(
        f"the labels to learn from and those to score have no class in common ({'; '.join(names)}): correct one of them"
    )


def check_classes(train: Int[np.ndarray, " n"], val: Int[np.ndarray, " m"], class_names: tuple[str, ...]) -> None:
    """Checks the label of each image of the two splits.

    Raises:
        ValueError: for labels outside the classes, a split with one class, or a class to score without a training
            image.
    """
    for what, labels in (("to learn from", train), ("to score", val)):
        if not 0 <= labels.min() <= labels.max() < len(class_names):
            raise ValueError(
                f"images {what} have labels from {labels.min()} to {labels.max()}, but the classes are 0 to "
                f"{len(class_names) - 1}: choose a split whose images have classes"
            )
        if len(held := np.unique(labels)) < 2:
            raise ValueError(
                f"all images {what} are of the class {class_names[held[0]]}: with one class every score is 100%"
            )
    if len(missing := np.setdiff1d(val, train)):
        raise ValueError(
            f"{len(missing)} classes to score, such as {class_names[missing[0]]}, have no training image: add some, "
            "or leave these classes out"
        )


def count_images(splits: PixelSplits | ClassSplits) -> dict[str, int]:
    """Returns the numbers of images to score and to learn from, as results.json holds them."""
    train, val = splits
    return {"num_images": len(val), "num_training_images": len(train)}


def count_classified(
    splits: ClassSplits, train: Int[np.ndarray, " n"], val: Int[np.ndarray, " m"], predicted: Int[np.ndarray, " m"]
) -> dict[str, int]:
    """Returns what a score of classification is of, as results.json holds it; errors as for `check_classes`."""
    check_classes(train, val, splits.val.class_names)
    return count_images(splits) | {
        "num_classes": splits.val.num_classes,
        "num_classes_in_labels": len(np.unique(val)),
        "num_classes_predicted": len(np.unique(predicted)),
    }


def describe_pixels(val: SegmentationSplit, train: SegmentationSplit | None = None) -> dict[str, Any]:
    """Returns what identifies the images that are scored, and those that are learned from, if any."""
    described = {"kind": val.kind, "name": val.root.resolve().name}
    described |= {"val_split": val.name, "num_val": len(val), "num_classes": val.num_classes}
    described |= {"train_split": train.name, "num_train": len(train)} if train else {}
    files = [file for split in (train, val) if split for pair in split.pairs for file in pair]
    return described | {"digest": digest_files(val.root, files)}


def describe_classes(splits: ClassSplits) -> dict[str, Any]:
    """Returns what identifies images with one class each."""
    train, val = splits
    described = {"name": val.root.resolve().name, "train_split": train.name, "val_split": val.name}
    described |= {"num_train": len(train), "num_val": len(val), "num_classes": val.num_classes}
    return described | {"digest": identify(CombinedSource([train.source, val.source])).digest}
