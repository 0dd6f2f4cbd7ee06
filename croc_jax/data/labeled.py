"""Images with pixel labels: lists, checks and loads a segmentation folder."""

import dataclasses
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from croc_jax.data.sources import SUFFIXES

IGNORED = 255


class LabeledDataError(ValueError):
    """A labeled data set cannot be used; the message names the file or folder and a remedy."""


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


def read_ids(file: Path) -> UInt8[np.ndarray, "H W"]:
    """Returns the numbers in a label file, which are those of the classes.

    Raises:
        LabeledDataError: for an unreadable file, or one of other than 8-bit numbers.
    """
    label = _open(file)
    if label.mode not in ("L", "P"):
        raise LabeledDataError(f"{file} has pixels of mode {label.mode}: save 8-bit class ids (mode L or P)")
    return np.asarray(label)


@dataclasses.dataclass(frozen=True)
class SegmentationSplit:
    """Images with the class of each pixel.

    Attributes:
        root: the folder.
        name: of the split.
        pairs: sorted by name.
        num_classes: ids 0 to num_classes - 1 may occur, and 255 for pixels that do not count.
        class_names: one a class.
        read_label: gives the class of each pixel from a label file.
    """

    root: Path
    name: str
    pairs: tuple[LabeledPair, ...]
    num_classes: int
    class_names: tuple[str, ...]
    read_label: Callable[[Path], UInt8[np.ndarray, "H W"]] = read_ids

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
        pair = self.pairs[index]
        image, label = _open(pair.image).convert("RGB"), Image.fromarray(self.read_label(pair.label))
        if image.size != label.size:
            raise LabeledDataError(
                f"{pair.label} has {_size_text(label)} pixels, but {pair.image} has {_size_text(image)}: "
                "labels need the size of their image"
            )
        self._check_ids(pair.label, np.asarray(label))
        return np.asarray(_resize(image, image_size, Image.Resampling.BICUBIC)), np.asarray(
            _resize(label, label_size, Image.Resampling.NEAREST)
        )

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
        indices = range(len(self))
        with ThreadPoolExecutor(num_threads) as pool:

            def submit(start: int) -> list[Future]:
                batch = indices[start : start + batch_size]
                return [pool.submit(self.load, i, image_size=image_size, label_size=label_size) for i in batch]

            pending = submit(0)
            for start in range(0, len(self), batch_size):
                loaded = [future.result() for future in pending]
                pending = submit(start + batch_size)
                images = np.zeros((batch_size, *image_size, 3), np.uint8)
                images[: len(loaded)] = [image for image, _ in loaded]
                yield LabeledBatch(images, [label for _, label in loaded])

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


def _open(file: Path) -> Image.Image:
    try:
        image = Image.open(file)
        image.load()
    except OSError as error:
        raise LabeledDataError(f"cannot read {file} ({error}): replace or remove it") from error
    return image


def _resize(image: Image.Image, size: tuple[int, int] | None, filter_: Image.Resampling) -> Image.Image:
    if size is None or image.size == size[::-1]:
        return image
    return image.resize((size[1], size[0]), filter_)


def _size_text(image: Image.Image) -> str:
    return f"{image.height} x {image.width}"
