"""The interface of all sources of images, and what several of them need."""

import bisect
import os
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
from absl import logging

# Of the formats that Pillow reads, those that images come in; in any case.
SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".jp2",
)  # fmt: skip


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


class Names:
    """Many names in little memory: each worker process holds a copy."""

    def __init__(self, names: Iterable[str]) -> None:
        """Keeps the names in their order."""
        encoded = list(map(os.fsencode, names))
        self._bytes = b"".join(encoded)
        self._ends = np.cumsum([0, *map(len, encoded)])

    def __len__(self) -> int:
        """Returns the number of names."""
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        """Returns one name."""
        if not 0 <= index < len(self):
            raise IndexError(f"name {index} of {len(self)}")
        return os.fsdecode(self._bytes[self._ends[index] : self._ends[index + 1]])


def find_part(ends: Sequence[int], index: int) -> tuple[int, int]:
    """Returns which of several consecutive parts holds an item, and the item's index in that part.

    Args:
        ends: the running sum of the lengths of the parts.
        index: index of the item among all.

    Raises:
        IndexError: if there is no such item.
    """
    if not 0 <= index < ends[-1]:
        raise IndexError(f"image {index} of {ends[-1]}")
    part = bisect.bisect_right(ends, index)
    return part, index - (ends[part - 1] if part else 0)


def is_image(path: str) -> bool:
    """Returns whether a path has the suffix of an image and is no sidecar that macOS writes beside one."""
    return path.lower().endswith(SUFFIXES) and not is_sidecar(path)


def is_sidecar(path: str) -> bool:
    """Returns whether a path is one of the files that macOS adds to archives and foreign disks: ._NAME, __MACOSX/."""
    return path.rpartition("/")[2].startswith("._") or "__MACOSX/" in path


def report_left_out(where: object, paths: Sequence[str]) -> None:
    """Logs once how many files are no images, by suffix; annotations are expected, unreadable formats are not."""
    counts: dict[str, int] = {}
    for path in paths:
        kind = "macOS sidecars" if is_sidecar(path) else os.path.splitext(path)[1].lower() or "without suffix"
        counts[kind] = counts.get(kind, 0) + 1
    if counts:
        listed = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
        logging.warning("%s: %d files are not read as images (%s)", where, sum(counts.values()), listed)


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
