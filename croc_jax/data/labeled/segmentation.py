"""Images with pixel labels: one split of any data set, and how a plain segmentation folder is listed."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from croc_jax.data.labeled.label_files import (
    IGNORED,
    LabeledDataError,
    LabelReader,
    image_size_of,
    open_image,
    read_ids,
)
from croc_jax.data.prefetch import load_ahead
from croc_jax.data.sources import SUFFIXES


class LabeledPair(NamedTuple):
    """The files of one image and of its labels."""

    image: Path
    label: Path


class LabeledBatch(NamedTuple):
    """A batch of constant size, so that it compiles once.

    Attributes:
        images: `[b H W 3]`; after the last image of a split, black ones fill the batch.
        labels: one array a real image, so their number tells how many images are real.
    """

    images: UInt8[np.ndarray, "b H W 3"]
    labels: list[UInt8[np.ndarray, "_ _"]]


@dataclasses.dataclass(frozen=True)
class SegmentationSplit:
    """One split of a segmentation data set.

    Attributes:
        root: the folder of the data set.
        name: of the split, with what was drawn from it.
        pairs: sorted by name.
        num_classes: ids 0 to num_classes - 1 may occur, and 255 for pixels that do not count.
        class_names: one a class.
        read_label: from a label file to class ids; picklable.
        kind: of data set, as in the specs of `croc_jax.data.labeled.open_labeled`.
    """

    root: Path
    name: str
    pairs: tuple[LabeledPair, ...]
    num_classes: int
    class_names: tuple[str, ...]
    read_label: LabelReader = read_ids
    kind: str = "folder"

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.pairs)

    def load(
        self,
        index: int,
        *,
        image_size: tuple[int, int] | None = None,
        label_size: tuple[int, int] | None = None,
    ) -> tuple[UInt8[np.ndarray, "H W 3"], UInt8[np.ndarray, "h w"]]:
        """Returns an image and its labels.

        Args:
            index: of the pair.
            image_size: height and width to resize the image to, bicubically with antialiasing.
            label_size: alike for the labels, to the nearest pixel.

        Raises:
            LabeledDataError: for an unreadable file, labels of another size than the image, or
                an id outside the classes.
        """
        labels = self.load_labels(index, label_size=label_size)
        image = open_image(self.pairs[index].image).convert("RGB")
        return np.asarray(_resize(image, image_size, Image.Resampling.BICUBIC)), labels

    def load_labels(self, index: int, *, label_size: tuple[int, int] | None = None) -> UInt8[np.ndarray, "h w"]:
        """Returns the labels of an image; arguments and errors as for `load`."""
        pair = self.pairs[index]
        ids = self.read_label(pair.label)
        width, height = image_size_of(pair.image)
        if ids.shape != (height, width):
            raise LabeledDataError(
                f"{pair.label} has {ids.shape[0]} x {ids.shape[1]} pixels, but {pair.image} has {height} x {width}: "
                "labels need the size of their image"
            )
        self._check_ids(pair.label, ids)
        return np.asarray(_resize(Image.fromarray(ids), label_size, Image.Resampling.NEAREST))

    def batches(
        self,
        batch_size: int,
        *,
        image_size: tuple[int, int],
        label_size: tuple[int, int] | None,
        num_threads: int = 2,
    ) -> Iterator[LabeledBatch]:
        """Yields all images in order, in batches that load while the one before is in use.

        Args:
            batch_size: images a batch.
            image_size: height and width of all images.
            label_size: of all labels; None leaves each at its own size.
            num_threads: threads that decode and resize.

        Raises:
            LabeledDataError: as `load`.
        """

        def load(index: int) -> tuple[np.ndarray, np.ndarray]:
            return self.load(index, image_size=image_size, label_size=label_size)

        for loaded in load_ahead(load, len(self), batch_size, num_threads=num_threads):
            images = np.zeros((batch_size, *image_size, 3), np.uint8)
            images[: len(loaded)] = [image for image, _ in loaded]
            yield LabeledBatch(images, [label for _, label in loaded])

    def label_batches(
        self, batch_size: int, *, label_size: tuple[int, int] | None, num_threads: int = 2
    ) -> Iterator[list[UInt8[np.ndarray, "_ _"]]]:
        """Yields the labels of `batches` without the images; arguments and errors as there."""

        def load(index: int) -> np.ndarray:
            return self.load_labels(index, label_size=label_size)

        return load_ahead(load, len(self), batch_size, num_threads=num_threads)

    def _check_ids(self, file: Path, label: np.ndarray) -> None:
        wrong = label[(label >= self.num_classes) & (label != IGNORED)]
        if wrong.size:
            raise LabeledDataError(
                f"{file} holds class {wrong[0]}, but the data set has {self.num_classes} classes (0 to "
                f"{self.num_classes - 1}): set num_classes, or make pixels that should not count {IGNORED}"
            )


def open_segmentation(
    root: str | Path, split: str, *, num_classes: int | None = None, train_split: str = "train"
) -> SegmentationSplit:
    """Lists a split of a segmentation folder.

    Args:
        root: holds images/SPLIT/* and labels/SPLIT/*.png of equal stems, and perhaps classes.txt
            with one class name a line.
        split: such as "train" or "val".
        num_classes: by default the lines of classes.txt, or else one more than the largest id
            in the labels of `train_split`.
        train_split: see num_classes.

    Raises:
        LabeledDataError: for a missing folder, an empty split, an image without labels, two
            images of the same stem, or names that do not fit the number of classes.
    """
    root = Path(root)
    pairs = _list_pairs(root, split)
    names = _read_class_names(root)
    if num_classes is None:
        num_classes = len(names) or _infer_num_classes(
            pairs if split == train_split else _list_pairs(root, train_split)
        )
    if not 1 <= num_classes <= IGNORED:
        raise LabeledDataError(f"num_classes={num_classes}: 8-bit labels hold 1 to {IGNORED} classes")
    if names and len(names) != num_classes:
        raise LabeledDataError(
            f"{root / 'classes.txt'} names {len(names)} classes, but num_classes={num_classes}: correct one"
        )
    return SegmentationSplit(root, split, pairs, num_classes, names or tuple(map(str, range(num_classes))))


def _list_pairs(root: Path, split: str) -> tuple[LabeledPair, ...]:
    folders = root / "images" / split, root / "labels" / split
    for folder in folders:
        if not folder.is_dir():
            raise LabeledDataError(
                f"no folder {folder}: segmentation folders hold images/{split}/*.jpg and labels/{split}/*.png"
            )
    images = sorted(file for file in folders[0].iterdir() if file.suffix.lower() in SUFFIXES)
    if not images:
        raise LabeledDataError(f"no images in {folders[0]}: put {', '.join(SUFFIXES)} files there")
    pairs: dict[str, LabeledPair] = {}
    for image in images:
        label = folders[1] / f"{image.stem}.png"
        if image.stem in pairs:
            raise LabeledDataError(f"{image} and {pairs[image.stem].image.name} have the same stem: rename one of them")
        if not label.is_file():
            raise LabeledDataError(f"no labels {label} for {image}: add them, or remove the image")
        pairs[image.stem] = LabeledPair(image, label)
    return tuple(pairs.values())


def _read_class_names(root: Path) -> tuple[str, ...]:
    file = root / "classes.txt"
    if not file.is_file():
        return ()
    return tuple(line.strip() for line in file.read_text().splitlines() if line.strip())


def _infer_num_classes(pairs: tuple[LabeledPair, ...]) -> int:
    num_classes = 0
    for pair in pairs:
        label = read_ids(pair.label).astype(np.int16)
        num_classes = max(num_classes, int(np.where(label == IGNORED, -1, label).max()) + 1)
    if not num_classes:
        raise LabeledDataError(f"all labels in {pairs[0].label.parent} are {IGNORED}: nothing to learn or score")
    return num_classes


def _resize(image: Image.Image, size: tuple[int, int] | None, filter_: Image.Resampling) -> Image.Image:
    if size is None or image.size == size[::-1]:
        return image
    return image.resize((size[1], size[0]), filter_)
