"""COCO 2017 and COCO+, as their archives unpack."""

import os
from pathlib import Path

from croc_jax.data.sources.base import ImageSource
from croc_jax.data.sources.combined import CombinedSource
from croc_jax.data.sources.folder import FolderSource

_URL = "http://images.cocodataset.org/zips"


def open_coco(root: str | os.PathLike, parts: tuple[str, ...] = ("train2017",)) -> ImageSource:
    """Returns the training images of COCO 2017 (118 k).

    Args:
        root: holds the folders of the parts.
        parts: folders of images, one after another.

    Raises:
        ValueError: for a missing part, with its URL.
    """
    missing = [Path(root) / part for part in parts if not (Path(root) / part).is_dir()]
    if missing:
        urls = " and ".join(f"{_URL}/{folder.name}.zip" for folder in missing)
        raise ValueError(f"no folder {' and '.join(map(str, missing))}: unpack {urls} in {root} (now in {os.getcwd()})")
    return CombinedSource([FolderSource(Path(root) / part) for part in parts])


def open_coco_plus(root: str | os.PathLike) -> ImageSource:
    """Returns the images of COCO+ (241 k), which adds the unlabeled ones; arguments and errors as for `open_coco`."""
    return open_coco(root, ("train2017", "unlabeled2017"))
