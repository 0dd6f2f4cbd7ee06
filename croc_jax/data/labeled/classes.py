"""Images with one class each: a folder with one folder of images a class, or a prepared tfds data set."""

import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Real

from croc_jax.data.channels import decode_pixels
from croc_jax.data.decoding import naming, read_header
from croc_jax.data.labeled.turned import TurnedImages
from croc_jax.data.prefetch import LabeledBatch, load_padded
from croc_jax.data.resizing import resize_with_pillow
from croc_jax.data.sources.base import ImageSource, split_choice
from croc_jax.data.sources.entries import list_entries
from croc_jax.data.sources.files import FolderSource
from croc_jax.data.sources.tfds import TfdsSource
from croc_jax.data.specs import parse_spec
from croc_jax.pixel_format import RGB8, PixelFormat

FORMS = {"folder": "ROOT", "tfds": "NAME[@DATA_DIR[@FEATURE]]"}


@dataclasses.dataclass(frozen=True, eq=False)
class ClassificationSplit:
    """One split of a data set with one class an image.

    Attributes:
        root: the folder of the data set.
        name: name of the split.
        source: the encoded images, in a fixed order.
        label_of: returns the class of an image by its index; may read it.
        class_names: one a class.
        turned: the images that their EXIF orientation turned, of those read so far.
    """

    root: Path
    name: str
    source: ImageSource
    label_of: Callable[[int], int]
    class_names: tuple[str, ...]
    turned: TurnedImages = dataclasses.field(default_factory=TurnedImages, repr=False)

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.source)

    def load(
        self, index: int, *, resize: int, image_size: int, pixels: PixelFormat = RGB8
    ) -> Real[np.ndarray, "H W c"]:
        """Returns the middle of a resized image, as torchvision's Resize and CenterCrop.

        Args:
            index: index of the image.
            resize: pixels of the shorter side, bicubic with antialiasing.
            image_size: side of the square that is cut out.
            pixels: format of the image.

        Raises:
            ValueError: for an image that cannot be read.
            OSError: for a fault of the machine.
        """
        name = self.source.name(index)
        with naming(name):
            encoded = self.source[index]
            if pixels.is_rgb8:
                self.turned.add(name, read_header(encoded))
            image = decode_pixels(encoded, pixels)
        return center_crop(image, resize=resize, image_size=image_size)

    def batches(
        self, batch_size: int, *, resize: int, image_size: int, num_threads: int = 2, pixels: PixelFormat = RGB8
    ) -> Iterator[LabeledBatch[int]]:
        """Yields all images in order, in batches that load while the one before is in use.

        Args:
            batch_size: images a batch.
            resize: see `load`.
            image_size: see `load`.
            num_threads: threads that decode and resize.
            pixels: format of the images.

        Raises:
            ValueError: as `load`.
        """

        def load(index: int) -> tuple[np.ndarray, int]:
            return self.load(index, resize=resize, image_size=image_size, pixels=pixels), self.label_of(index)

        yield from load_padded(load, len(self), batch_size, num_threads=num_threads)
        self.turned.tell(f"{self.root}, {self.name}")


def center_crop(image: Real[np.ndarray, "H W c"], *, resize: int, image_size: int) -> Real[np.ndarray, "S S c"]:
    """Returns the middle square of an image whose shorter side was resized.

    Args:
        image: the image.
        resize: pixels of the shorter side; the longer one is rounded down.
        image_size: side of the square, at most `resize`.
    """
    short = min(image.shape[:2])
    height, width = (resize if side == short else resize * side // short for side in image.shape[:2])
    pixels = resize_with_pillow(image, (height, width))
    top, left = round((height - image_size) / 2), round((width - image_size) / 2)
    return pixels[top : top + image_size, left : left + image_size]


def open_classes(spec: str | Path, split: str, *, train_split: str = "train") -> ClassificationSplit:
    """Lists a split of images with classes.

    Args:
        spec: tfds:NAME[@DATA_DIR[@FEATURE]] of a prepared data set with a feature "label", folder:ROOT, or the path of
            a class folder.
        split: such as "train" or "val"; of tfds also "validation" or "train[:10%]".
        train_split: see `open_class_folder`.

    Raises:
        ValueError: if it cannot be opened, or its images have no class; see `TfdsSource` and `open_class_folder`.
    """
    kind, value = parse_spec(spec, FORMS, what="data set with classes")
    if kind != "tfds":
        return open_class_folder(value, split, train_split=train_split)
    name, _, data_dir = value.partition("@")
    data_dir, feature = split_choice(data_dir)
    source = TfdsSource(name, split, os.path.expanduser(data_dir) or None, feature)
    if not source.class_names:
        raise ValueError(f"the data set {name} has no class feature called label: choose another")
    return ClassificationSplit(Path(data_dir or name), split, source, source.label, source.class_names)


def open_class_folder(root: str | Path, split: str, *, train_split: str = "train") -> ClassificationSplit:
    """Lists a split of a class folder, the layout of ImageNet: ROOT/SPLIT/CLASS/*.jpg.

    Args:
        root: holds one folder a split.
        split: such as "train" or "val".
        train_split: its folders are the classes, so that these agree between the splits.

    Raises:
        ValueError: for a missing or empty split, an image outside the folders of classes, or a class that
            the training split does not have.
    """
    train_folder, folder = Path(root) / train_split, Path(root) / split
    class_names = _list_classes(train_folder)
    if unknown := sorted(set(_list_classes(folder)) - set(class_names)):
        raise ValueError(
            f"{folder / unknown[0]} is no class of {train_folder}: use the same folder names in both splits"
        )
    source, ids = FolderSource(folder), {name: index for index, name in enumerate(class_names)}
    labels = []
    for index in range(len(source)):
        class_name, slash, _ = source.name(index)[len(str(folder)) + 1 :].partition("/")
        if not slash:
            raise ValueError(f"{folder / class_name} lies outside the folders of the classes: move or remove it")
        labels.append(ids[class_name])
    return ClassificationSplit(Path(root), split, source, labels.__getitem__, class_names)


def _list_classes(folder: Path) -> tuple[str, ...]:
    if not folder.is_dir():
        raise ValueError(f"no folder {folder}: class folders hold {folder.name}/CLASS/*.jpg, one folder a class")
    names = tuple(sorted(list_entries(folder).folders))
    if not names:
        raise ValueError(f"no folders in {folder}: make one a class, with its images")
    return names
