"""ImageNet's training images, one folder a class."""

import os
from pathlib import Path

from croc_jax.data.sources.folder import FolderSource

_URL = "https://image-net.org/download.php"


def open_imagenet(root: str | os.PathLike) -> FolderSource:
    """Returns the training images of an ImageNet folder (1.28 M).

    Args:
        root: holds train with the folders of the classes, or these folders themselves.

    Raises:
        ValueError: if there are no such folders, with their URL.
    """
    train = Path(root) / "train"
    folder = train if train.is_dir() else Path(root)
    # Without train, what lies beside it must not be taken for classes.
    parts = [entry.name for entry in folder.iterdir() if entry.is_dir()] if folder.is_dir() else []
    if not set(parts) - {"val", "test"}:
        raise ValueError(
            f"no folder {train} with one folder of images a class, nor such folders in {root}: get "
            f"ILSVRC2012_img_train.tar from {_URL} and unpack each class in its folder (now in {os.getcwd()})"
        )
    return FolderSource(folder)
