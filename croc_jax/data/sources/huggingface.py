"""Image data sets that Hugging Face's library `datasets` has saved on disk."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from croc_jax.data.sources.base import find_image_feature, split_choice
from croc_jax.data.sources.shards import describe_shard
from croc_jax.data.stored_arrays import write_npy
from croc_jax.machine_errors import from_library, is_machine_error
from croc_jax.regular_files import read_regular

if TYPE_CHECKING:
    from datasets import Dataset  # pyright: ignore[reportMissingImports]


class HuggingFaceSource:
    """The images of one split, as they are encoded there, named FOLDER:INDEX."""

    def __init__(self, value: str | os.PathLike) -> None:
        """Opens what `save_to_disk` wrote.

        Args:
            value: folder of a data set, or of several splits if there is only one; else of one of them
                (FOLDER/train). Where a row has several images, @COLUMN at the end chooses; by
                default it is the one called image.

        Raises:
            ValueError: if `datasets` is not installed, or there is no such data set, or it is
                empty, or has no column of images, or several and no choice.
        """
        self._value = os.fspath(value)
        self._folder, column = split_choice(self._value)
        self._column, self._rows = _open(self._folder, column)

    def __len__(self) -> int:
        """Returns the number of rows."""
        return len(self._rows)

    def __getitem__(self, index: int) -> bytes:
        """Returns an encoded image, of an array the contents of a .npy file; raises OSError if it cannot be read."""
        try:
            image = self._rows[index][self._column]
        except ValueError as error:
            raise from_library(error, self.name(index)) from error
        if isinstance(image, np.ndarray):
            return write_npy(image)
        if image is None or not (image["bytes"] or image["path"]):
            raise OSError(f"{self.name(index)}: this row has no image")
        return image["bytes"] or read_regular(image["path"])

    def name(self, index: int) -> str:
        """Returns FOLDER:INDEX."""
        return f"{self._folder}:{index}"

    def entries(self) -> Iterator[tuple[str, int]]:
        """Yields what identifies each Arrow file, then the column of images and the number of rows."""
        yield from (describe_shard(file["filename"]) for file in self._rows.cache_files)
        yield self._column, len(self._rows)

    def __reduce__(self) -> tuple[type["HuggingFaceSource"], tuple[str]]:
        """Opens the data set again in each worker process."""
        return HuggingFaceSource, (self._value,)


def _open(folder: str, chosen: str) -> tuple[str, "Dataset"]:
    """Returns the name of the column of images, and the rows with nothing but that, encoded or as arrays."""
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError(f"hf:{folder} needs the library datasets ({error}): pip install 'croc_jax[hf]'") from error
    if not os.path.isdir(folder):
        raise ValueError(
            f"no folder {folder}{_other_splits(folder)}: hf: reads what save_to_disk wrote, no names of the hub; "
            f"fetch one by datasets.load_dataset(NAME).save_to_disk(FOLDER) (now in {os.getcwd()})"
        )
    try:
        found = datasets.load_from_disk(folder)
    except IndexError as error:  # There is no table of no rows.
        raise ValueError(f"the data set {folder} is empty") from error
    except Exception as error:  # Damaged files raise errors of pyarrow, json and others.
        if is_machine_error(error):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"no Hugging Face data set in {folder} ({reason}): write it with Dataset.save_to_disk"
        ) from error
    if isinstance(found, datasets.DatasetDict):
        if len(found) != 1:
            choices = " or ".join(f"hf:{os.path.join(folder, str(split))}" for split in found)
            raise ValueError(f"{folder} holds several splits: name one of them, {choices}")
        found = next(iter(found.values()))
    images = [name for name, kind in found.features.items() if isinstance(kind, datasets.Image)]
    nested = [name for name, kind in found.features.items() if name not in images and "Image(" in repr(kind)]
    # Such as the bands of a satellite. Beside images, an array may be anything.
    kinds = (datasets.Array2D, datasets.Array3D)
    arrays = [name for name, kind in found.features.items() if isinstance(kind, kinds)]
    choices = arrays if chosen in arrays else images or arrays
    column = find_image_feature(
        folder, choices, list(found.features), nested=nested, chosen=chosen, form=f"hf:{folder}@"
    )
    rows = found.select_columns([column])
    if column in arrays:
        # Without its type, integers would become 64-bit ones.
        return column, rows.with_format("numpy", dtype=np.dtype(found.features[column].dtype))
    return column, rows.cast_column(column, datasets.Image(decode=False))


def _other_splits(folder: str) -> str:
    """Returns which splits lie beside one that does not exist, for a message."""
    try:
        splits = json.loads(Path(os.path.dirname(folder.rstrip("/")), "dataset_dict.json").read_bytes())["splits"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return f" (its splits are {', '.join(map(str, splits))})"
