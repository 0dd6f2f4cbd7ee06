"""Image data sets that Hugging Face's library `datasets` has saved on disk."""

import os
from pathlib import Path
from typing import Any

from croc_jax.data.sources.base import SourceError


class HuggingFaceSource:
    """The images of one split, as they are encoded there."""

    def __init__(self, folder: str | os.PathLike) -> None:
        """Opens what `save_to_disk` wrote.

        Args:
            folder: of a data set, or of several splits if there is only one; else of one of them
                (FOLDER/train).

        Raises:
            SourceError: if `datasets` is not installed, or there is no such data set, or it is
                empty, or has no column of images, or several.
        """
        self._folder = os.fspath(folder)
        self._column, self._rows = _open(self._folder)
        self._length = len(self._rows)

    def __len__(self) -> int:
        """Returns the number of rows."""
        return self._length

    def __getitem__(self, index: int) -> bytes:
        """Returns an encoded image; raises OSError if it cannot be read."""
        if not 0 <= index < self._length:
            raise IndexError(f"image {index} of {self._length}")
        if self._rows is None:
            self._rows = _open(self._folder)[-1]
        try:
            image = self._rows[index][self._column]
        except ValueError as error:
            raise OSError(f"{self.name(index)}: {error}") from error
        if image is None or not (image["bytes"] or image["path"]):
            raise OSError(f"{self.name(index)}: this row has no image")
        return image["bytes"] or Path(image["path"]).read_bytes()

    def name(self, index: int) -> str:
        """Returns FOLDER:INDEX."""
        return f"{self._folder}:{index}"

    def __getstate__(self) -> dict[str, Any]:
        """Leaves the open files out: each process opens its own."""
        return self.__dict__ | {"_rows": None}


def _open(folder: str) -> tuple[str, Any]:
    """Returns the name of the column of images, and the rows with nothing but that, encoded."""
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise SourceError(f"hf:{folder} needs the library datasets ({error}): pip install 'croc_jax[hf]'") from error
    try:
        found = datasets.load_from_disk(folder)
    except IndexError as error:  # There is no table of no rows.
        raise SourceError(f"the data set {folder} is empty") from error
    except (OSError, ValueError) as error:
        raise SourceError(
            f"no Hugging Face data set in {folder} ({error}): write it with Dataset.save_to_disk (now in {os.getcwd()})"
        ) from error
    if isinstance(found, datasets.DatasetDict):
        if len(found) != 1:
            choices = " or ".join(f"hf:{os.path.join(folder, str(split))}" for split in found)
            raise SourceError(f"{folder} holds several splits: name one of them, {choices}")
        found = next(iter(found.values()))
    column = _find_images(datasets, folder, found.features)
    return column, found.select_columns([column]).cast_column(column, datasets.Image(decode=False))


def _find_images(datasets: Any, folder: str, features: Any) -> str:
    images = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    if "image" in images:
        return "image"
    if not images:
        raise SourceError(f"the data set {folder} has no column of images, only {', '.join(features)}: choose another")
    if len(images) > 1:
        raise SourceError(f"the data set {folder} has several images a row ({', '.join(images)}), none called image")
    return images[0]
