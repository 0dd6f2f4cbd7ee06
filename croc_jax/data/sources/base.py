"""The interface of all sources of images, and what several of them need."""

import collections
import functools
import multiprocessing
import os
from collections.abc import Mapping, Sequence
from typing import Protocol

from absl import logging

from croc_jax.data.formats import HINTS, LABEL_SUFFIXES, SUFFIXES

# What systems, file servers and tools put beside images, in lower case; besides these, all that begins with a dot.
_SYSTEM_NAMES = {
    "__macosx", "@eadir", "@recycle", "@recently-snapshot", "@tmp", "#recycle", "#snapshot", "$recycle.bin",
    "system volume information", "lost+found", "network trash folder", "temporary items", "thumbs.db", "ehthumbs.db",
    "desktop.ini", "icon\r", "__pycache__", ".ipynb_checkpoints", ".thumbnails", ".appledouble", ".git", ".ds_store",
    ".trash", ".trashes", ".@__thumb",
}  # fmt: skip


class ImageSource(Protocol):
    """Encoded images in a fixed order; picklable, since worker processes read from copies."""

    def __len__(self) -> int:
        """Returns the number of images."""
        ...

    def __getitem__(self, index: int) -> bytes:
        """Returns the encoded image; raises OSError if it cannot be read."""
        ...

    def name(self, index: int) -> str:
        """Returns the name of the image in messages; the same in every process and run."""
        ...


def is_image(path: str) -> bool:
    """Returns whether a path has the suffix of an image that can be read (`SUFFIXES`), and is no sidecar."""
    return path.lower().endswith(SUFFIXES) and not is_sidecar(path)


def is_label(path: str) -> bool:
    """Returns whether a path has the suffix of a file of labels (`LABEL_SUFFIXES`), and is no sidecar."""
    return path.lower().endswith(LABEL_SUFFIXES) and not is_sidecar(path)


def is_sidecar(path: str) -> bool:
    """Returns whether a path, below what a person named, is hidden or a system's: no image, class, label or frame.

    Hidden is what begins with a dot, at any depth, such as ._a.jpg and .git/; systems add __MACOSX, @eaDir, lost+found.

    Examples:
        >>> [is_sidecar(path) for path in ("./a.jpg", "cat/._a.jpg", "@eaDir/a.jpg/thumb.jpg", ".ipynb_checkpoints")]
        [False, True, True, True]
    """
    return any((part[:1] == "." and part.strip(".")) or part.lower() in _SYSTEM_NAMES for part in path.split("/"))


def is_in_system_folder(path: str) -> bool:
    """Returns whether a system or a tool made a file or a folder above it; other hidden folders may be anyone's."""
    *folders, name = path.split("/")
    return is_sidecar(name) or any(part.lower() in _SYSTEM_NAMES for part in folders)


def report_left_out(
    where: object, paths: Sequence[str], *, others: Mapping[str, int] | None = None, taken: int | None = None
) -> None:
    """Logs once how many files are not read, by suffix; annotations are expected, unreadable formats are not.

    Args:
        where: the source or the folder.
        paths: those that are left out, relative to it.
        others: how many are left out for another reason than their name, by reason.
        taken: number of files that are read.
    """
    kinds = ("hidden or of the system" if is_sidecar(path) else _suffix_of(path) for path in paths)
    counts = collections.Counter(kinds) + collections.Counter(others or {})
    if counts:
        hints = {kind: f" ({HINTS[kind]})" if kind in HINTS else "" for kind in counts}
        listed = ", ".join(f"{count} {kind}{hints[kind]}" for kind, count in sorted(counts.items()))
        read = "" if taken is None else f"{taken} files are read, "
        tell(f"{where}: {read}{counts.total()} are left out: {listed}")


def tell(message: str) -> None:
    """Logs a warning about data once: not again for another split, nor in a worker that opens the data again."""
    if multiprocessing.parent_process() is None:
        _tell(message.encode(errors="backslashreplace").decode().replace("\n", "\\n"))


@functools.cache
def _tell(message: str) -> None:
    logging.warning("%s", message)


def _suffix_of(path: str) -> str:
    suffix = os.path.splitext(path)[1].lower()
    # In a folder of ids, what follows a dot may be anything.
    return suffix if suffix[1:].isalnum() and len(suffix) <= 12 else "without suffix"


def find_image_feature(where: str, images: Sequence[str], features: Sequence[str]) -> str:
    """Returns the image feature of a data set: the only one, or the one called image.

    Args:
        where: name of the data set for messages.
        images: names of the features that are images.
        features: names of all features.

    Raises:
        ValueError: if there is no image feature, or several and none is called image.
    """
    if "image" in images:
        return "image"
    if not images:
        raise ValueError(f"the data set {where} has no image feature, only {', '.join(features)}: choose another")
    if len(images) > 1:
        raise ValueError(f"the data set {where} has several image features ({', '.join(images)}), none called image")
    return images[0]
