"""Keeps a few scored images worth looking at: the best, the worst, and some in between."""

from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from croc_jax.data.labeled.segmentation import IGNORED, SegmentationSplit


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

    def __init__(self, split: SegmentationSplit, image_size: tuple[int, int], *, count: int = 6) -> None:
        """Keeps nothing yet.

        Args:
            split: labeled images; those that are kept are loaded from it.
            image_size: height and width that they are resized to.
            count: of each kind.
        """
        self._split, self._image_size = split, image_size
        places = np.linspace(0, len(split) - 1, min(count, len(split))).round().astype(int)
        self._wanted, self._count, self._seen = set(places.tolist()), count, 0
        self._typical: list[Example] = []
        self._best: list[tuple[float, Example]] = []
        self._worst: list[tuple[float, Example]] = []

    def consider(self, labels: UInt8[np.ndarray, "h w"], prediction: UInt8[np.ndarray, "h w"]) -> None:
        """Takes note of the next image; one without a pixel that counts is neither best nor worst.

        Args:
            labels: of the image.
            prediction: of the same size.

        Raises:
            LabeledDataError: see `SegmentationSplit.load`.
        """
        index, accuracy = self._seen, pixel_accuracy(labels, prediction)
        self._seen, wanted = index + 1, index in self._wanted
        few = len(self._best) < self._count
        extreme = not np.isnan(accuracy) and (few or accuracy > self._best[-1][0] or accuracy < self._worst[-1][0])
        if not (wanted or extreme):
            return
        example = Example(self._split.load(index, image_size=self._image_size)[0], labels, prediction)
        if wanted:
            self._typical.append(example)
        if extreme:
            self._best = sorted([*self._best, (accuracy, example)], key=lambda pair: -pair[0])[: self._count]
            self._worst = sorted([*self._worst, (accuracy, example)], key=lambda pair: pair[0])[: self._count]

    def gallery(self) -> Gallery:
        """Returns what is kept."""
        return Gallery(self._typical, [e for _, e in self._best], [e for _, e in self._worst])
