"""Image data sets that Hugging Face's library `datasets` has saved on disk."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from croc_jax.data.sources.base import find_image_feature
from croc_jax.data.sources.shards import describe_shard

if TYPE_CHECKING:
    from datasets import Dataset  # pyright: ignore[reportMissingImports]


class HuggingFaceSource:
    """The images of one split, as they are encoded there, named FOLDER:INDEX."""

    def __init__(self, folder: str | os.PathLike) -> None:
        """Opens what `save_to_disk` wrote.

        Args:
            folder: a data set, or several splits if there is only one; else one of them (FOLDER/train).

        Raises:
            ValueError: if `datasets` is not installed, or there is no such data set, or it is
                empty, or has no column of images, or several.
        """
        self._folder = os.fspath(folder)
        self._column, self._rows = _open(self._folder)

    def __len__(self) -> int:
        """Returns the number of rows."""
        return len(self._rows)

    def __getitem__(self, index: int) -> bytes:
        """Returns an encoded image; raises OSError if it cannot be read."""
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

    def entries(self) -> Iterator[tuple[str, int]]:
        """Yields what identifies each Arrow file, then the column of images and the number of rows."""
        yield from (describe_shard(file["filename"]) for file in self._rows.cache_files)
        yield self._column, len(self._rows)

    def __reduce__(self) -> tuple[type["HuggingFaceSource"], tuple[str]]:
        """Opens the data set again in each worker process."""
        return HuggingFaceSource, (self._folder,)


def _open(folder: str) -> tuple[str, "Dataset"]:
    """Returns the name of the column of images, and the rows with nothing but that, encoded."""
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError(f"hf:{folder} needs the library datasets ({error}): pip install 'croc_jax[hf]'") from error
    try:
        found = datasets.load_from_disk(folder)
    except IndexError as error:  # There is no table of no rows.
        raise ValueError(f"the data set {folder} is empty") from error
    except (OSError, ValueError) as error:
        raise ValueError(
            f"no Hugging Face data set in {folder} ({error}): write it with Dataset.save_to_disk (now in {os.getcwd()})"
        ) from error
    if isinstance(found, datasets.DatasetDict):
        if len(found) != 1:
            choices = " or ".join(f"hf:{os.path.join(folder, str(split))}" for split in found)
            raise ValueError(f"{folder} holds several splits: name one of them, {choices}")
        found = next(iter(found.values()))
    images = [name for name, kind in found.features.items() if isinstance(kind, datasets.Image)]
    column = find_image_feature(folder, images, list(found.features))
    return column, found.select_columns([column]).cast_column(column, datasets.Image(decode=False))
