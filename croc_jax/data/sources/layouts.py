"""Data sets that everyone unpacks into the same folders."""

import os
from pathlib import Path

from croc_jax.data.sources.base import SourceError
from croc_jax.data.sources.files import FolderSource

_COCO_URL = "http://images.cocodataset.org/zips"
_IMAGENET_URL = "https://image-net.org/download.php"


def open_coco(root: str | os.PathLike, *, unlabeled: bool = False) -> FolderSource:
    """Returns the training images of COCO 2017 (118 k), or of COCO+ (241 k).

    Args:
        root: holds train2017, and for COCO+ unlabeled2017.
        unlabeled: whether the unlabeled images follow, which makes it COCO+.

    Raises:
        SourceError: for a missing part, with where to get it.
    """
    parts = ("train2017", "unlabeled2017") if unlabeled else ("train2017",)
    folders = [Path(root) / part for part in parts]
    missing = [folder for folder in folders if not folder.is_dir()]
    if missing:
        names = " and ".join(map(str, missing))
        urls = " and ".join(f"{_COCO_URL}/{folder.name}.zip" for folder in missing)
        raise SourceError(f"no folder {names}: unpack {urls} in {root} (now in {os.getcwd()})")
    return FolderSource(folders)


def open_imagenet(root: str | os.PathLike) -> FolderSource:
    """Returns the training images of an ImageNet folder (1.28 M): a folder of images for each class.

    Args:
        root: holds train with the folders of the classes, or these folders themselves.

    Raises:
        SourceError: if there are no such folders, with where to get them.
    """
    train = Path(root) / "train"
    folder = train if train.is_dir() else Path(root)
    # Without train, what lies beside it must not be taken for classes.
    parts = [entry.name for entry in folder.iterdir() if entry.is_dir()] if folder.is_dir() else []
    if not set(parts) - {"val", "test"}:
        raise SourceError(
            f"no folder {train} with one folder of images a class, nor such folders in {root}: get "
            f"ILSVRC2012_img_train.tar from {_IMAGENET_URL} and unpack each class in its folder (now in {os.getcwd()})"
        )
    return FolderSource(folder)
