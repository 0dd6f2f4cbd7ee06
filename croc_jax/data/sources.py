"""Where images come from: encoded files under one number each."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


class SourceError(ValueError):
    """There are no images to read; the message names the folder and a remedy."""


class ImageSource(Protocol):
    """Encoded images in a fixed order; picklable, since worker processes read from copies."""

    def __len__(self) -> int:
        """Returns the number of images."""
        ...

    def __getitem__(self, index: int) -> bytes:
        """Returns the encoded image; raises OSError if it cannot be read."""
        ...

    def name(self, index: int) -> str:
        """Returns what to call the image in a message; the same in every process and run."""
        ...


class FolderSource:
    """The image files in folders and all that is below them.

    The order is that of the folders, and within each that of the paths relative to it; so it
    depends neither on the file system nor on where a folder lies.
    """

    def __init__(self, folders: str | os.PathLike | Sequence[str | os.PathLike]) -> None:
        """Lists the files; reads none.

        Args:
            folders: one or more; files count by their suffix (`SUFFIXES`, in any case).

        Raises:
            SourceError: for no folders at all, a missing one, or one without images.
        """
        if isinstance(folders, str | os.PathLike):
            folders = (folders,)
        if not folders:
            raise SourceError("data.folders is empty: name one or more folders of images")
        self._files = tuple(file for folder in folders for file in _list_images(os.fspath(folder)))

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self._files)

    def __getitem__(self, index: int) -> bytes:
        """Returns the bytes of one file; raises OSError if it cannot be read."""
        return Path(self._files[index]).read_bytes()

    def name(self, index: int) -> str:
        """Returns the path of one file."""
        return self._files[index]


def _list_images(folder: str) -> list[str]:
    if not os.path.isdir(folder):
        reason = "is a file" if os.path.exists(folder) else "does not exist"
        raise SourceError(f"the image folder {folder} {reason}: correct data.folders (now in {os.getcwd()})")
    names = sorted(os.path.relpath(file, folder).replace(os.sep, "/") for file in _walk(folder, above=()))
    if not names:
        raise SourceError(f"no images in {folder} or below it: looked for {', '.join(SUFFIXES)} files (in any case)")
    return [os.path.join(folder, name) for name in names]


def _walk(folder: str, *, above: tuple[str, ...]) -> Iterator[str]:
    """Yields image files below a folder, through links too, but not around in circles."""
    real = os.path.realpath(folder)
    if real in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _walk(entry.path, above=(*above, real))
            elif entry.name.lower().endswith(SUFFIXES):
                yield entry.path
