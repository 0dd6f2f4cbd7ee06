"""Opens the labeled splits that a config names, and describes them for the fingerprint."""

from pathlib import Path
from typing import Any, NamedTuple

from croc_jax.data.labeled import open_labeled
from croc_jax.data.labeled.classes import ClassificationSplit, open_classes
from croc_jax.data.labeled.segmentation import SegmentationSplit
from croc_jax.data.sources.combined import CombinedSource
from croc_jax.data.sources.identity import digest_files, identify


class PixelSplits(NamedTuple):
    """Images with pixel labels: to learn from, and to score."""

    train: SegmentationSplit
    val: SegmentationSplit


class ClassSplits(NamedTuple):
    """Images with one class each: to learn from, and to score."""

    train: ClassificationSplit
    val: ClassificationSplit


def open_pixel_splits(
    *, root: str | Path, train_split: str, val_split: str, num_classes: int | None = None, train_fraction: float = 1
) -> PixelSplits:
    """Opens both splits of a data set with pixel labels; arguments and errors as for `open_labeled`."""
    common = {"num_classes": num_classes, "train_split": train_split}
    return PixelSplits(
        open_labeled(root, train_split, fraction=train_fraction, **common), open_labeled(root, val_split, **common)
    )


def open_pixel_split(
    *, root: str | Path, train_split: str, val_split: str, num_classes: int | None = None
) -> SegmentationSplit:
    """Opens the scored split alone; arguments and errors as for `open_labeled`."""
    return open_labeled(root, val_split, num_classes=num_classes, train_split=train_split)


def open_class_splits(*, root: str | Path, train_split: str, val_split: str) -> ClassSplits:
    """Opens both splits of a data set with one class an image; arguments and errors as for `open_classes`."""
    return ClassSplits(*(open_classes(root, split, train_split=train_split) for split in (train_split, val_split)))


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
