"""What every source of images offers: encoded files under one number each."""

import bisect
import os
from collections.abc import Sequence
from typing import Protocol

import numpy as np

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


class Names:
    """Many names in little memory: each worker process holds a copy."""

    def __init__(self, names: Sequence[str]) -> None:
        """Keeps the names in their order."""
        encoded = list(map(os.fsencode, names))
        self._bytes = b"".join(encoded)
        self._ends = np.cumsum([0, *map(len, encoded)])

    def __len__(self) -> int:
        """Returns their number."""
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        """Returns one of them."""
        if not 0 <= index < len(self):
            raise IndexError(f"name {index} of {len(self)}")
        return os.fsdecode(self._bytes[self._ends[index] : self._ends[index + 1]])


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
