"""Labeled data sets by the names that a config or a command line gives them; a new one is one file and one line."""

from collections.abc import Callable
from pathlib import Path

from croc_jax.data.labeled.ade20k import open_ade20k
from croc_jax.data.labeled.cityscapes import open_cityscapes
from croc_jax.data.labeled.coco import open_coco_stuff, open_coco_things
from croc_jax.data.labeled.listing import draw_sample
from croc_jax.data.labeled.segmentation import SegmentationSplit, open_segmentation
from croc_jax.data.labeled.voc import open_voc
from croc_jax.data.specs import FOLDER, parse_spec

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
        split: name of the split, such as "train", "val" or, of VOC, "trainaug".
        num_classes: classes of a segmentation folder, see `open_segmentation`; other data sets know theirs.
        train_split: training split of a segmentation folder, see `open_segmentation`.
        fraction: share of the images to draw; added to the name of the split.
        seed: seed of that draw.

    Raises:
        ValueError: for an unknown kind, a split that the data set does not have, a wrong
            number of classes, or a missing file, with where to get it.
    """
    kind, root = parse_spec(spec, dict.fromkeys(KINDS, "ROOT"), what="data set")
    if kind == FOLDER:
        opened = open_segmentation(root, split, num_classes=num_classes, train_split=train_split)
    else:
        opened = _KINDS[kind](root, split)
        if num_classes not in (None, opened.num_classes):
            raise ValueError(f"num_classes={num_classes}: {kind} has {opened.num_classes} classes; leave it out")
    return draw_sample(opened, fraction, seed=seed)
