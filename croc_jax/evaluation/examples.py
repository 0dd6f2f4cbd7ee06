"""Keeps a few scored images worth looking at: the best, the worst, and some in between."""

from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from croc_jax.data.labeled import IGNORED


class Example(NamedTuple):
    """One image of the validation split; labels and prediction have one size."""

    image: UInt8[np.ndarray, "H W 3"]
    labels: UInt8[np.ndarray, "h w"]
    prediction: UInt8[np.ndarray, "h w"]


class Gallery(NamedTuple):
    """Examples by how well they came out.

    Attributes:
        typical: evenly spread over the split, in its order.
        best: the largest shares of right pixels, best first.
        worst: the smallest, worst first.
    """

    typical: list[Example]
    best: list[Example]
    worst: list[Example]


def pixel_accuracy(labels: UInt8[np.ndarray, "h w"], prediction: UInt8[np.ndarray, "h w"]) -> float:
    """Returns the share of right pixels among those that count; NaN if none do."""
    counted = labels != IGNORED
    return float(np.mean((labels == prediction)[counted])) if counted.any() else float("nan")


class GalleryKeeper:
    """Sees all images of a split once, in order, and keeps a few."""

    def __init__(self, num_images: int, *, count: int = 6) -> None:
        """Keeps nothing yet.

        Args:
            num_images: of the split.
            count: of each kind.
        """
        places = np.linspace(0, num_images - 1, min(count, num_images)).round().astype(int)
        self._wanted, self._count, self._seen = set(places.tolist()), count, 0
        self._typical: list[Example] = []
        self._best: list[tuple[float, Example]] = []
        self._worst: list[tuple[float, Example]] = []

    def add(self, example: Example) -> None:
        """Takes note of the next image; one without a pixel that counts is neither best nor worst."""
        if self._seen in self._wanted:
            self._typical.append(example)
        self._seen += 1
        accuracy = pixel_accuracy(example.labels, example.prediction)
        if not np.isnan(accuracy):
            self._best = sorted([*self._best, (accuracy, example)], key=lambda pair: -pair[0])[: self._count]
            self._worst = sorted([*self._worst, (accuracy, example)], key=lambda pair: pair[0])[: self._count]

    def would_keep(self, accuracy: float) -> bool:
        """Says whether the next image would be kept, so that others need not be loaded.

        Args:
            accuracy: of the next image.
        """
        few = len(self._best) < self._count
        remarkable = few or accuracy > self._best[-1][0] or accuracy < self._worst[-1][0]
        return self._seen in self._wanted or (not np.isnan(accuracy) and remarkable)

    def skip(self) -> None:
        """Passes over the next image."""
        self._seen += 1

    def gallery(self) -> Gallery:
        """Returns what is kept."""
        return Gallery(self._typical, [e for _, e in self._best], [e for _, e in self._worst])
