"""The image files in a folder and everything below it."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from croc_jax.data.sources.base import SUFFIXES, Names, is_image, report_left_out


class FileSource:
    """Image files by their paths relative to a folder."""

    def __init__(self, folder: str | os.PathLike, paths: Iterable[str]) -> None:
        """Keeps the paths; reads none of the files."""
        self._folder, self._paths = os.fspath(folder), Names(paths)

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self._paths)

    def __getitem__(self, index: int) -> bytes:
        """Returns the bytes of one file; raises OSError if it cannot be read."""
        return Path(self.name(index)).read_bytes()

    def name(self, index: int) -> str:
        """Returns the path of one file."""
        return os.path.join(self._folder, self._paths[index])


class FolderSource(FileSource):
    """The image files of a folder, in the order of their relative paths; it depends on no file system."""

    def __init__(self, folder: str | os.PathLike) -> None:
        """Lists the files that have the suffix of an image (`SUFFIXES`, in any case).

        Raises:
            ValueError: for a missing folder, or one without images.
        """
        super().__init__(folder, _list_images(os.fspath(folder)))


def _list_images(folder: str) -> list[str]:
    """Returns the paths of images relative to a folder, in order."""
    if not os.path.isdir(folder):
        reason = "is a file" if os.path.exists(folder) else "does not exist"
        raise ValueError(f"the image folder {folder} {reason}: correct the path (now in {os.getcwd()})")
    files = sorted(os.path.relpath(file, folder).replace(os.sep, "/") for file in _walk(folder, above=()))
    names = [file for file in files if is_image(file)]
    if not names:
        raise ValueError(f"no images in {folder} or below it: looked for {', '.join(SUFFIXES)} files (in any case)")
    report_left_out(folder, [file for file in files if not is_image(file)])
    return names


def _walk(folder: str, *, above: tuple[str, ...]) -> Iterator[str]:
    """Yields all regular files below a folder, through links too, but not around in circles."""
    real = os.path.realpath(folder)
    if real in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _walk(entry.path, above=(*above, real))
            elif entry.is_file() or entry.is_symlink():  # a broken link is an unreadable image; a FIFO would block
                yield entry.path
