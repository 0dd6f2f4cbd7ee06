"""Images in files of their own: whole folders, or a list of paths."""

import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from croc_jax.data.sources.base import SUFFIXES, Names, SourceError, locate


class FolderSource:
    """The image files in folders and all that is below them.

    The order is that of the folders, and within each that of the paths relative to it; so it
    depends neither on the file system nor on where a folder lies.
    """

    def __init__(
        self, folders: str | os.PathLike | Sequence[str | os.PathLike], *, setting: str = "data.folders"
    ) -> None:
        """Lists the files; reads none.

        Args:
            folders: one or more; files count by their suffix (`SUFFIXES`, in any case).
            setting: to correct if there is no such folder.

        Raises:
            SourceError: for no folders at all, a missing one, or one without images.
        """
        if isinstance(folders, str | os.PathLike):
            folders = (folders,)
        if not folders:
            raise SourceError("data.folders is empty: name one or more folders of images")
        self._folders = tuple(os.fspath(folder) for folder in folders)
        self._names = tuple(Names(_list_images(folder, setting)) for folder in self._folders)
        self._ends = tuple(itertools.accumulate(map(len, self._names)))

    def __len__(self) -> int:
        """Returns the number of images."""
        return self._ends[-1]

    def __getitem__(self, index: int) -> bytes:
        """Returns the bytes of one file; raises OSError if it cannot be read."""
        return Path(self.name(index)).read_bytes()

    def name(self, index: int) -> str:
        """Returns the path of one file."""
        part, place = locate(self._ends, index)
        return os.path.join(self._folders[part], self._names[part][place])


class ListSource:
    """The image files that a text file lists, one path a line, in its order.

    Paths are relative to the folder of the list. Empty lines and those that start with # do not
    count.
    """

    def __init__(self, file: str | os.PathLike) -> None:
        """Reads the list, but none of its images.

        Raises:
            SourceError: for a missing, unreadable or empty list.
        """
        file = os.fspath(file)
        try:
            lines = [line.strip() for line in Path(file).read_text(encoding="utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
            raise SourceError(f"cannot read the list of images {file}: {reason} (now in {os.getcwd()})") from error
        self._folder = os.path.dirname(file)
        self._paths = Names([line for line in lines if line and not line.startswith("#")])
        if not len(self._paths):
            raise SourceError(f"the list {file} names no images: write one path a line, relative to the list")

    def __len__(self) -> int:
        """Returns the number of lines that count."""
        return len(self._paths)

    def __getitem__(self, index: int) -> bytes:
        """Returns the bytes of one file; raises OSError if it cannot be read."""
        return Path(self.name(index)).read_bytes()

    def name(self, index: int) -> str:
        """Returns the path of one file."""
        return os.path.join(self._folder, self._paths[index])


def _list_images(folder: str, setting: str) -> list[str]:
    """Returns the paths of images relative to a folder, in order."""
    if not os.path.isdir(folder):
        reason = "is a file" if os.path.exists(folder) else "does not exist"
        raise SourceError(f"the image folder {folder} {reason}: correct {setting} (now in {os.getcwd()})")
    names = sorted(os.path.relpath(file, folder).replace(os.sep, "/") for file in _walk(folder, above=()))
    if not names:
        raise SourceError(f"no images in {folder} or below it: looked for {', '.join(SUFFIXES)} files (in any case)")
    return names


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
