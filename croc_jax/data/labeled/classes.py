"""Images with one class each: a folder with one folder of images a class, or a prepared tfds data set."""

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, UInt8
from PIL import Image

from croc_jax.data.decoding import DecodeError, decode
from croc_jax.data.prefetch import load_padded
from croc_jax.data.sources.base import ImageSource
from croc_jax.data.sources.folder import FolderSource
from croc_jax.data.sources.tfds import TfdsSource
from croc_jax.data.specs import parse_spec

FORMS = {"folder": "ROOT", "tfds": "NAME[@DATA_DIR]"}


class ClassBatch(NamedTuple):
    """A batch of constant size, so that it compiles once.

    Attributes:
        images: `[b H W 3]`; after the last image of a split, black ones fill the batch.
        labels: one for each real image, so their number is that of the real images.
    """

    images: UInt8[np.ndarray, "b H W 3"]
    labels: Int32[np.ndarray, " n"]


class TfdsLabels:
    """Labels that are read with their examples: to list them all would read every image."""

    def __init__(self, source: TfdsSource) -> None:
        """Reads nothing."""
        self._source = source

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self._source)

    def __getitem__(self, index: int) -> int:
        """Returns the class of an image; raises OSError if it cannot be read."""
        return self._source.label(index)


@dataclasses.dataclass(frozen=True, eq=False)
class ClassificationSplit:
    """One split of a data set with one class an image.

    Attributes:
        root: the folder of the data set.
        name: name of the split.
        source: the encoded images, in a fixed order.
        labels: the class of each; read on demand where they lie beside the images.
        class_names: one a class.
    """

    root: Path
    name: str
    source: ImageSource
    labels: Int32[np.ndarray, " n"] | TfdsLabels
    class_names: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.labels)

    def load(self, index: int, *, resize: int, image_size: int) -> UInt8[np.ndarray, "H W 3"]:
        """Returns the middle of a resized image, as torchvision's Resize and CenterCrop.

        Args:
            index: index of the image.
            resize: pixels of the shorter side, bicubic with antialiasing.
            image_size: side of the square that is cut out.

        Raises:
            ValueError: for an image that cannot be read.
        """
        try:
            image = Image.fromarray(decode(self.source[index]))
        except (OSError, DecodeError) as error:
            raise ValueError(f"cannot read {self.source.name(index)} ({error}): replace or remove it") from error
        return center_crop(image, resize=resize, image_size=image_size)

    def batches(self, batch_size: int, *, resize: int, image_size: int, num_threads: int = 2) -> Iterator[ClassBatch]:
        """Yields all images in order, in batches that load while the one before is in use.

        Args:
            batch_size: images a batch.
            resize: see `load`.
            image_size: see `load`.
            num_threads: threads that decode and resize.

        Raises:
            ValueError: as `load`.
        """

        def load(index: int) -> tuple[np.ndarray, int]:
            return self.load(index, resize=resize, image_size=image_size), self.labels[index]

        for images, labels in load_padded(load, len(self), batch_size, num_threads=num_threads):
            yield ClassBatch(images, np.array(labels, np.int32))


def center_crop(image: Image.Image, *, resize: int, image_size: int) -> UInt8[np.ndarray, "H W 3"]:
    """Returns the middle square of an image whose shorter side was resized.

    Args:
        image: the image in RGB.
        resize: pixels of the shorter side; the longer one is rounded down.
        image_size: side of the square, at most `resize`.
    """
    short = min(image.size)
    width, height = (resize if side == short else resize * side // short for side in image.size)
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
    top, left = round((height - image_size) / 2), round((width - image_size) / 2)
    return pixels[top : top + image_size, left : left + image_size]


def open_classes(spec: str | Path, split: str, *, train_split: str = "train") -> ClassificationSplit:
    """Lists a split of images with classes.

    Args:
        spec: tfds:NAME[@DATA_DIR], folder:ROOT, or the path of a class folder.
        split: such as "train" or "val"; of tfds also "validation" or "train[:10%]".
        train_split: see `open_class_folder`.

    Raises:
        ValueError: see `open_class_folder` and `open_tfds_classes`.
    """
    kind, value = parse_spec(spec, FORMS, what="data set with classes")
    if kind == "tfds":
        name, _, data_dir = value.partition("@")
        return open_tfds_classes(name, split, data_dir=os.path.expanduser(data_dir) or None)
    return open_class_folder(value, split, train_split=train_split)


def open_class_folder(root: str | Path, split: str, *, train_split: str = "train") -> ClassificationSplit:
    """Lists a split of a class folder, the layout of ImageNet: ROOT/SPLIT/CLASS/*.jpg.

    Args:
        root: holds one folder a split.
        split: such as "train" or "val".
        train_split: its folders are the classes, so that these agree between the splits.

    Raises:
        ValueError: for a missing or empty split, an image outside the folders of classes, or a
            class that the training split does not have.
    """
    train_folder, folder = Path(root) / train_split, Path(root) / split
    class_names = _list_classes(train_folder)
    if unknown := sorted(set(_list_classes(folder)) - set(class_names)):
        raise ValueError(
            f"{folder / unknown[0]} is no class of {train_folder}: use the same folder names in both splits"
        )
    source, ids = FolderSource(folder), {name: index for index, name in enumerate(class_names)}
    labels = np.zeros(len(source), np.int32)
    for index in range(len(source)):
        class_name, slash, _ = source.name(index)[len(str(folder)) + 1 :].partition("/")
        if not slash:
            raise ValueError(f"{folder / class_name} lies outside the folders of the classes: move or remove it")
        labels[index] = ids[class_name]
    return ClassificationSplit(Path(root), split, source, labels, class_names)


def _list_classes(folder: Path) -> tuple[str, ...]:
    if not folder.is_dir():
        raise ValueError(f"no folder {folder}: class folders hold {folder.name}/CLASS/*.jpg, one folder a class")
    names = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir()))
    if not names:
        raise ValueError(f"no folders in {folder}: make one a class, with its images")
    return names


def open_tfds_classes(name: str, split: str, *, data_dir: str | None = None) -> ClassificationSplit:
    """Opens a split of a data set that TensorFlow Datasets has prepared, with a feature "label".

    Args:
        name: such as "imagenet2012" or "imagenette/320px-v2".
        split: such as "train" or "validation".
        data_dir: where it was prepared; by default tfds' own folder.

    Raises:
        ValueError: if it cannot be opened (see `TfdsSource`), or its images have no class.
    """
    source = TfdsSource(name, split, data_dir)
    if not source.class_names:
        raise ValueError(f"the data set {name} has no class feature called label: choose another")
    return ClassificationSplit(Path(data_dir or name), split, source, TfdsLabels(source), source.class_names)
