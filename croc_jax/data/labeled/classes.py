"""Images with one class each: a folder with one folder of images a class, or a prepared tfds data set."""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32, UInt8
from PIL import Image

from croc_jax.data.decoding import DecodeError, decode
from croc_jax.data.labeled.label_files import LabeledDataError
from croc_jax.data.prefetch import load_ahead
from croc_jax.data.sources import FolderSource, ImageSource, SourceError, TfdsSource


class ClassBatch(NamedTuple):
    """A batch of constant size, so that it compiles once.

    Attributes:
        images: `[b H W 3]`; after the last image of a split, black ones fill the batch.
        labels: one a real image, so their number tells how many images are real.
    """

    images: UInt8[np.ndarray, "b H W 3"]
    labels: Int32[np.ndarray, " n"]


@dataclasses.dataclass(frozen=True, eq=False)
class ClassificationSplit:
    """One split of a data set with one class an image.

    Attributes:
        root: the folder of the data set.
        name: of the split.
        source: of the encoded images, in a fixed order.
        labels: the class of each; read on demand where they lie beside the images.
        class_names: one a class.
    """

    root: Path
    name: str
    source: ImageSource
    labels: Sequence[int] | Int32[np.ndarray, " n"]
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
            index: of the image.
            resize: pixels of the shorter side, bicubic with antialiasing.
            image_size: of the square that is cut out.

        Raises:
            LabeledDataError: for an image that cannot be read.
        """
        try:
            image = Image.fromarray(decode(self.source[index]))
        except (OSError, DecodeError) as error:
            raise LabeledDataError(f"cannot read {self.source.name(index)} ({error}): replace or remove it") from error
        return center_crop(image, resize=resize, image_size=image_size)

    def batches(self, batch_size: int, *, resize: int, image_size: int, num_threads: int = 2) -> Iterator[ClassBatch]:
        """Yields all images in order, in batches that load while the one before is in use.

        Args:
            batch_size: images a batch.
            resize: see `load`.
            image_size: see `load`.
            num_threads: threads that decode and resize.

        Raises:
            LabeledDataError: as `load`.
        """

        def load(index: int) -> tuple[np.ndarray, int]:
            return self.load(index, resize=resize, image_size=image_size), self.labels[index]

        for loaded in load_ahead(load, len(self), batch_size, num_threads=num_threads):
            images = np.zeros((batch_size, image_size, image_size, 3), np.uint8)
            images[: len(loaded)] = [image for image, _ in loaded]
            yield ClassBatch(images, np.array([label for _, label in loaded], np.int32))


def center_crop(image: Image.Image, *, resize: int, image_size: int) -> UInt8[np.ndarray, "H W 3"]:
    """Returns the middle square of an image whose shorter side was resized.

    Args:
        image: in RGB.
        resize: pixels of the shorter side; the longer one is rounded down.
        image_size: of the square, at most `resize`.
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
        LabeledDataError: see `open_class_folder` and `open_tfds_classes`.
    """
    kind, found, value = str(spec).partition(":")
    if found and kind == "tfds":
        name, _, data_dir = value.partition("@")
        return open_tfds_classes(name, split, data_dir=data_dir or None)
    root = value if found and kind == "folder" else spec
    return open_class_folder(Path(root).expanduser(), split, train_split=train_split)


def open_class_folder(root: str | Path, split: str, *, train_split: str = "train") -> ClassificationSplit:
    """Lists a split of a class folder, the layout of ImageNet: ROOT/SPLIT/CLASS/*.jpg.

    Args:
        root: holds one folder a split.
        split: such as "train" or "val".
        train_split: its folders are the classes, so that these agree between the splits.

    Raises:
        LabeledDataError: for a missing or empty split, an image outside the folders of classes,
            or a class that the training split does not have.
    """
    class_names = _list_classes(Path(root) / train_split)
    folder = Path(root) / split
    if split != train_split and (unknown := sorted(set(_list_classes(folder)) - set(class_names))):
        raise LabeledDataError(
            f"{folder / unknown[0]} is no class of {Path(root) / train_split}: name the folders alike in both splits"
        )
    try:
        source = FolderSource(folder)
    except SourceError as error:
        raise LabeledDataError(str(error)) from error
    ids, skipped = {name: index for index, name in enumerate(class_names)}, len(str(folder)) + 1
    parts = (source.name(index)[skipped:].split("/") for index in range(len(source)))
    labels = np.array([_label(folder, part, ids) for part in parts], np.int32)
    return ClassificationSplit(Path(root), split, source, labels, class_names)


class _TfdsLabels(Sequence[int]):
    """Labels that are read with their examples: to list them all would read every image."""

    def __init__(self, source: TfdsSource) -> None:
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: Any) -> Any:
        return self._source.label(index)


def open_tfds_classes(name: str, split: str, *, data_dir: str | None = None) -> ClassificationSplit:
    """Opens a split of a data set that TensorFlow Datasets has prepared, with a feature "label".

    Args:
        name: such as "imagenet2012" or "imagenette/320px-v2".
        split: such as "train" or "validation".
        data_dir: where it was prepared; by default where tfds does so.

    Raises:
        LabeledDataError: if it cannot be opened (see `TfdsSource`), or its images have no class.
    """
    try:
        source = TfdsSource(name, split, os.path.expanduser(data_dir) if data_dir else None)
    except SourceError as error:
        raise LabeledDataError(str(error)) from error
    if not source.class_names:
        raise LabeledDataError(f"the data set {name} has no class feature called label: choose another")
    return ClassificationSplit(Path(data_dir or name), split, source, _TfdsLabels(source), source.class_names)


def _list_classes(folder: Path) -> tuple[str, ...]:
    if not folder.is_dir():
        raise LabeledDataError(f"no folder {folder}: class folders hold {folder.name}/CLASS/*.jpg, one folder a class")
    names = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir()))
    if not names:
        raise LabeledDataError(f"no folders in {folder}: make one a class, with its images")
    return names


def _label(folder: Path, parts: list[str], ids: dict[str, int]) -> int:
    if len(parts) == 1:
        raise LabeledDataError(f"{folder / parts[0]} lies outside the folders of the classes: move or remove it")
    return ids[parts[0]]
