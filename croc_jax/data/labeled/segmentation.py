"""Images with pixel labels: one split of any data set, and how a plain segmentation folder is listed."""

import dataclasses
import functools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Real
from PIL import Image

from croc_jax.data.decoding import Header, Size
from croc_jax.data.formats import LABEL_SUFFIXES
from croc_jax.data.labeled.label_files import (
    IGNORED,
    Ids,
    LabelReader,
    image_header,
    read_ids,
    read_image,
    upright_header,
)
from croc_jax.data.labeled.object_masks import summarize_ids
from croc_jax.data.labeled.turned import TurnedImages
from croc_jax.data.orientation import UPRIGHT
from croc_jax.data.prefetch import LabeledBatch, load_ahead, load_padded
from croc_jax.data.resizing import resize_with_pillow
from croc_jax.data.sources.base import SUFFIXES, find_images, is_label, report_left_out
from croc_jax.data.sources.entries import check_stems, list_entries
from croc_jax.data.text_lists import check_unique, read_lines
from croc_jax.pixel_format import RGB8, PixelFormat


class LabeledPair(NamedTuple):
    """The files of one image and of its labels."""

    image: Path
    label: Path


@dataclasses.dataclass(frozen=True)
class SegmentationSplit:
    """One split of a segmentation data set.

    Attributes:
        root: the folder of the data set.
        name: name of the split, with the share that was drawn from it.
        pairs: image and label files, sorted by name.
        class_names: one a class; their indices are the ids that may occur, besides 255 for ignored pixels.
        read_label: reads a label file as class ids; picklable.
        kind: kind of data set, as in the specs of `croc_jax.data.labeled.open_labeled`.
        turned: the images that their EXIF orientation turned, of those read so far.
    """

    root: Path
    name: str
    pairs: tuple[LabeledPair, ...]
    class_names: tuple[str, ...]
    read_label: LabelReader = read_ids
    kind: str = "folder"
    turned: TurnedImages = dataclasses.field(default_factory=TurnedImages, compare=False, repr=False)

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.pairs)

    def load(
        self,
        index: int,
        *,
        image_size: tuple[int, int] | None = None,
        label_size: tuple[int, int] | None = None,
        pixels: PixelFormat = RGB8,
    ) -> tuple[Real[np.ndarray, "H W c"], Ids]:
        """Returns an image, upright by its EXIF orientation, and its labels.

        Labels of the size of the upright image are used as they are; those that only fit the image as it is stored
        are turned with it.

        Args:
            index: index of the pair.
            image_size: height and width to resize the image to, bicubically with antialiasing.
            label_size: height and width to resize the labels to, to the nearest pixel.
            pixels: format of the image.

        Raises:
            ValueError: for an unreadable file, an image of another format, labels of another size than the image, or an
                id outside the classes.
        """
        # The image first: in one of another format, sizes mean nothing.
        image = read_image(self.pairs[index].image, pixels)
        if pixels.is_rgb8:
            labels = self.load_labels(index, label_size=label_size)
        else:
            labels = self._fit_labels(index, upright_header(image), label_size)
        if image_size is not None and image.shape[:2] != image_size:
            image = resize_with_pillow(image, image_size)
        return image, labels

    def load_labels(
        self, index: int, *, label_size: tuple[int, int] | None = None, pixels: PixelFormat | None = RGB8
    ) -> Ids:
        """Returns the labels of an image; arguments and errors as for `load`.

        Without a format of the image, they are not compared with it.
        """
        header = None if pixels is None else image_header(self.pairs[index].image, pixels)
        return self._fit_labels(index, header, label_size)

    def _fit_labels(self, index: int, header: Header | None, label_size: tuple[int, int] | None) -> Ids:
        image, file = self.pairs[index]
        labels = self.read_label(file)
        header = header or Header(Size(*labels.shape), UPRIGHT)
        ids = self.turned.turn_along(labels, image, header)
        if ids.shape != header.size:
            upright = "" if header.stored == header.size else ", turned upright"
            raise ValueError(
                f"{file} has {labels.shape[0]} x {labels.shape[1]} pixels, but {image} has {header.size.height} x "
                f"{header.size.width}{upright}: labels need the size of their image"
            )
        wrong = ids[(ids >= self.num_classes) & (ids != IGNORED)]
        if wrong.size:
            raise ValueError(
                f"{file} holds class {wrong[0]}, but the data set has {self.num_classes} classes (0 to "
                f"{self.num_classes - 1}): set num_classes, or make ignored pixels {IGNORED}"
            )
        if label_size is None or ids.shape == label_size:
            return ids
        return np.asarray(Image.fromarray(ids).resize((label_size[1], label_size[0]), Image.Resampling.NEAREST))

    def batches(
        self,
        batch_size: int,
        *,
        image_size: tuple[int, int],
        label_size: tuple[int, int] | None,
        num_threads: int = 2,
        pixels: PixelFormat = RGB8,
    ) -> Iterator[LabeledBatch[Ids]]:
        """Yields all images in order, in batches that load while the one before is in use.

        Args:
            batch_size: images a batch.
            image_size: height and width of all images.
            label_size: height and width of all labels; None leaves each at its own size.
            num_threads: threads that decode and resize.
            pixels: format of the images.

        Raises:
            ValueError: as `load`.
        """
        load = functools.partial(self.load, image_size=image_size, label_size=label_size, pixels=pixels)
        yield from load_padded(load, len(self), batch_size, num_threads=num_threads)
        self.turned.tell(f"{self.root}, {self.name}")

    def label_batches(
        self,
        batch_size: int,
        *,
        label_size: tuple[int, int] | None,
        num_threads: int = 2,
        pixels: PixelFormat = RGB8,
    ) -> Iterator[list[Ids]]:
        """Yields the labels of `batches` without the images; arguments and errors as there."""
        load = functools.partial(self.load_labels, label_size=label_size, pixels=pixels)
        yield from load_ahead(load, len(self), batch_size, num_threads=num_threads)
        self.turned.tell(f"{self.root}, {self.name}")


def open_segmentation(
    root: str | Path, split: str, *, num_classes: int | None = None, train_split: str = "train"
) -> SegmentationSplit:
    """Lists a split of a segmentation folder.

    Args:
        root: holds images/SPLIT/* and labels/SPLIT/* (PNG, BMP or TIFF) of equal stems, and perhaps
            classes.txt with one class name a line.
        split: such as "train" or "val".
        num_classes: by default the lines of classes.txt, or else one more than the largest id
            in the labels of `train_split`.
        train_split: the split whose labels give the number of classes.

    Raises:
        ValueError: for a missing folder, an empty split, an image without labels, two images or
            labels of the same stem, a wrong number of names, or, where labels give the number of classes, labels of a
            single class or without most of the ids up to the largest.
    """
    root = Path(root)
    pairs, file = _list_pairs(root, split), root / "classes.txt"
    lines = read_lines(file, what="list of classes") if file.exists() else []
    check_unique(file, lines)
    names = tuple(line.text for line in lines)
    if num_classes is None:
        num_classes = len(names) or _count_classes(pairs if split == train_split else _list_pairs(root, train_split))
    if not 1 <= num_classes <= IGNORED:
        raise ValueError(f"num_classes={num_classes}: 8-bit labels hold 1 to {IGNORED} classes")
    if names and len(names) != num_classes:
        raise ValueError(f"{file} names {len(names)} classes, but num_classes={num_classes}: correct one")
    return SegmentationSplit(root, split, pairs, names or tuple(map(str, range(num_classes))))


def _list_pairs(root: Path, split: str) -> tuple[LabeledPair, ...]:
    folders = root / "images" / split, root / "labels" / split
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(
                f"no folder {folder}: segmentation folders hold images/{split}/*.jpg and labels/{split}/*.png"
            )
    images, labels = map(list_entries, folders)
    names = sorted(find_images(images.files))
    if not names:
        raise ValueError(f"no images in {folders[0]}: put {', '.join(SUFFIXES)} files there")
    check_stems(folders[0], names)
    label_of = check_stems(folders[1], sorted(filter(is_label, labels.files)))
    pairs = []
    for name in names:
        stem = name.rpartition(".")[0]
        if stem not in label_of:
            raise ValueError(
                f"no labels {folders[1] / stem}.png for {folders[0] / name}: add them "
                f"({', '.join(LABEL_SUFFIXES)}), or remove the image"
            )
        pairs.append(LabeledPair(folders[0] / name, folders[1] / label_of[stem]))
    without_image = {"labels without an image": len(label_of) - len(pairs)}
    for folder, found, kept, more in (
        (folders[0], images, names, {}),
        (folders[1], labels, label_of.values(), without_image),
    ):
        left_out = sorted({*found.files}.difference(kept)) + found.sidecars
        others = found.others + Counter(more | {"folders": len(found.folders)})
        report_left_out(folder, left_out, others=others, taken=len(pairs))
    return tuple(pairs)


def _count_classes(pairs: tuple[LabeledPair, ...]) -> int:
    """Returns one more than the largest id in label files; raises ValueError if most smaller ids never occur."""
    folder = pairs[0].label.parent
    found = set().union(*(np.unique(read_ids(pair.label)).tolist() for pair in pairs))
    classes = check_found(found, where=str(folder))
    num_classes = classes[-1] + 1
    if 2 * len(classes) < num_classes:
        raise ValueError(
            f"the labels in {folder} hold {summarize_ids(classes)}: of {num_classes} classes (0 to {classes[-1]}) "
            f"{num_classes - len(classes)} never occur; number the classes 0 to {len(classes) - 1}, or set "
            f"num_classes={num_classes} if these are missing by chance"
        )
    return num_classes


def check_found(found: set[int], *, where: str) -> list[int]:
    """Returns the classes among the ids that labels hold; raises ValueError for fewer than two."""
    classes = sorted(found - {IGNORED})
    if len(classes) < 2:
        raise ValueError(
            f"all labels in {where} are {' or '.join(map(str, sorted(found)))}, and {IGNORED} is ignored: with fewer "
            "than two classes there is nothing to learn or score. Number classes from 0, such as 0 and 1 for a mask"
        )
    return classes
