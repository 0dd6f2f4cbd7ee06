"""The interface of all sources of images, and what several of them need."""

import collections
import os
from collections.abc import Iterator, Sequence
from typing import Protocol

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

    def entries(self) -> Iterator[tuple[str, int]]:
        """Yields names and sizes in bytes of the images in order, or of the files that hold them; reads no image.

        Names are relative to the source, so that the same images in another place have the same ones.
        """
        ...


def is_image(path: str) -> bool:
    """Returns whether a path has the suffix of an image and is no sidecar that macOS writes beside one."""
    return path.lower().endswith(SUFFIXES) and not is_sidecar(path)


def is_sidecar(path: str) -> bool:
    """Returns whether a path is one of the files that macOS adds to archives and foreign disks: ._NAME, __MACOSX/."""
    return path.rpartition("/")[2].startswith("._") or "__MACOSX/" in path


def report_left_out(where: object, paths: Sequence[str]) -> None:
    """Logs once how many files are no images, by suffix; annotations are expected, unreadable formats are not."""
    counts = collections.Counter(
        "macOS sidecars" if is_sidecar(path) else os.path.splitext(path)[1].lower() or "without suffix"
        for path in paths
    )
    if counts:
        listed = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
        logging.warning("%s: %d files are not read as images (%s)", where, len(paths), listed)


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
