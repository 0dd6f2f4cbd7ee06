"""What every source of images offers: encoded files under one number each."""

import bisect
from collections.abc import Sequence
from typing import Protocol

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


class SourceError(ValueError):
    """There are no images to read; the message names the folder and a remedy."""


class ImageSource(Protocol):
    """Encoded images in a fixed order; picklable, since worker processes read from copies."""

    def __len__(self) -> int:
        """Returns the number of images."""
        ...

    def __getitem__(self, index: int) -> bytes:
        """Returns the encoded image; raises OSError if it cannot be read."""
        ...

    def name(self, index: int) -> str:
        """Returns what to call the image in a message; the same in every process and run."""
        ...


def locate(ends: Sequence[int], index: int) -> tuple[int, int]:
    """Returns which of several parts in a row holds an item, and its place there.

    Args:
        ends: of the parts: the running sum of their lengths.
        index: of the item among all.

    Raises:
        IndexError: if there is no such item.
    """
    if not 0 <= index < ends[-1]:
        raise IndexError(f"image {index} of {ends[-1]}")
    part = bisect.bisect_right(ends, index)
    return part, index - (ends[part - 1] if part else 0)
