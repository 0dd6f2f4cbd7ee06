"""Labeled data sets by the names that a config or a command line gives them."""

import os
import re
from collections.abc import Callable
from pathlib import Path

from croc_jax.data.labeled.ade20k import open_ade20k
from croc_jax.data.labeled.cityscapes import open_cityscapes
from croc_jax.data.labeled.coco import open_coco_stuff, open_coco_things
from croc_jax.data.labeled.listing import draw_sample
from croc_jax.data.labeled.segmentation import LabeledDataError, SegmentationSplit, open_segmentation
from croc_jax.data.labeled.voc import open_voc

FOLDER = "folder"
_KINDS: dict[str, Callable[[str, str], SegmentationSplit]] = {
    "voc": open_voc,
    "coco-things": open_coco_things,
    "coco-stuff": open_coco_stuff,
    "ade20k": open_ade20k,
    "cityscapes": open_cityscapes,
}
KINDS = (*_KINDS, FOLDER)


def open_labeled(
    spec: str | Path,
    split: str,
    *,
    num_classes: int | None = None,
    train_split: str = "train",
    fraction: float = 1.0,
    seed: int = 0,
) -> SegmentationSplit:
    """Lists one split of a data set with pixel labels.

    Args:
        spec: KIND:ROOT with a kind of `KINDS`, or the path of a segmentation folder.
        split: as the data set calls it, such as "train", "val" or, of VOC, "trainaug".
        num_classes: of a segmentation folder, see `open_segmentation`; others know theirs.
        train_split: of a segmentation folder, see `open_segmentation`.
        fraction: share of the images to draw; the name of the split then tells it.
        seed: of that draw.

    Raises:
        LabeledDataError: for an unknown kind, a split that the data set does not have, a wrong
            number of classes, or a missing file, with where to get it.
    """
    kind, root = _split(os.fspath(spec))
    if kind == FOLDER:
        opened = open_segmentation(root, split, num_classes=num_classes, train_split=train_split)
        return draw_sample(opened, fraction, seed=seed)
    if kind not in _KINDS:
        hint = f"; write folder:{spec} for a folder of this name" if os.path.isdir(spec) else ""
        forms = ", ".join(f"{name}:ROOT" for name in KINDS)
        raise LabeledDataError(f"unknown kind of data set {kind!r} in {spec}: choose one of {forms}, or a folder{hint}")
    if not root:
        raise LabeledDataError(f"the data set {spec} names no folder: write {kind}:ROOT")
    opened = _KINDS[kind](root, split)
    if num_classes not in (None, opened.num_classes):
        raise LabeledDataError(f"num_classes={num_classes}: {kind} has {opened.num_classes} classes; leave it out")
    return draw_sample(opened, fraction, seed=seed)


def _split(spec: str) -> tuple[str, str]:
    """Returns kind and root; what has no kind is a folder."""
    parts = re.fullmatch(r"([\w+-]+):(.*)", spec, re.DOTALL)
    kind, root = (parts[1], parts[2]) if parts else (FOLDER, spec)
    return kind, os.path.expanduser(root)
