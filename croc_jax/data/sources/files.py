"""Image files: a folder, a list of paths, and the folders of COCO and ImageNet."""

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from croc_jax.data.sources.base import SUFFIXES, ImageSource, is_image, report_left_out
from croc_jax.data.sources.combined import CombinedSource
from croc_jax.machine_errors import is_machine_error

_COCO_URL = "http://images.cocodataset.org/zips"
_IMAGENET_URL = "https://image-net.org/download.php"
# Sizes of files, at most, and threads that ask for them: on a network file system, each is a round trip.
_MAX_SIZES, _THREADS = 100_000, 16


class FileSource:
    """Image files by their paths relative to a folder."""

    def __init__(self, folder: str | os.PathLike, paths: Iterable[str]) -> None:
        """Keeps the paths; reads none of the files."""
        self._folder = os.fspath(folder)
        # One array instead of millions of strings: each worker process holds a copy.
        self._paths = np.array([os.fsencode(path) for path in paths])

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self._paths)

    def __getitem__(self, index: int) -> bytes:
        """Returns the bytes of one file; raises OSError if it cannot be read."""
        return Path(self.name(index)).read_bytes()

    def name(self, index: int) -> str:
        """Returns the path of one file."""
        return os.path.join(self._folder, os.fsdecode(self._paths[index]))

    def entries(self) -> Iterator[tuple[str, int]]:
        """Yields each path, and its size; see `ImageSource.entries`.

        Of more than 100,000 files, the sizes of as many are read, evenly spaced; those of the others count as 0. A
        file that cannot be read has the size -1.

        Raises:
            OSError: if the file system fails.
        """
        paths, stride = [os.fsdecode(path) for path in self._paths], -(-len(self) // _MAX_SIZES)
        if all(map(os.path.isabs, paths)):
            # A list may name its images so: what they have in common is their place.
            common = len(os.path.dirname(os.path.commonprefix([min(paths), max(paths)])))
            paths = [path[common:].lstrip("/") for path in paths]
        sizes = np.zeros(len(self), np.int64)
        with ThreadPoolExecutor(_THREADS) as pool:
            parts = np.array_split(np.arange(0, len(self), stride), _THREADS)
            for part, found in zip(parts, pool.map(self._sizes, parts), strict=True):
                sizes[part] = found
        yield from zip(paths, sizes.tolist(), strict=True)

    def _sizes(self, indices: np.ndarray) -> list[int]:
        return [_size(self.name(index)) for index in indices]


class FolderSource(FileSource):
    """The image files in a folder and everything below it, in the order of their relative paths."""

    def __init__(self, folder: str | os.PathLike) -> None:
        """Lists the files that have the suffix of an image (`SUFFIXES`, in any case).

        Raises:
            ValueError: for a missing folder, or one without images.
        """
        if not os.path.isdir(folder):
            reason = "is a file" if os.path.exists(folder) else "does not exist"
            raise ValueError(f"the image folder {folder} {reason}: correct the path (now in {os.getcwd()})")
        files = sorted(os.path.relpath(file, folder).replace(os.sep, "/") for file in _walk(os.fspath(folder)))
        paths = [file for file in files if is_image(file)]
        if not paths:
            raise ValueError(f"no images in {folder} or below it: looked for {', '.join(SUFFIXES)} files (in any case)")
        report_left_out(folder, [file for file in files if not is_image(file)])
        super().__init__(folder, paths)


def _size(file: str) -> int:
    """Returns the size of a file, or -1 if there is none; raises OSError if the file system fails."""
    try:
        return os.stat(file).st_size
    except OSError as error:
        if is_machine_error(error):
            raise
        return -1


def _walk(folder: str, above: tuple[str, ...] = ()) -> Iterator[str]:
    """Yields all regular files below a folder, through links too, but not around in circles."""
    real = os.path.realpath(folder)
    if real in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _walk(entry.path, (*above, real))
            elif entry.is_file() or entry.is_symlink():  # a broken link is an unreadable image; a FIFO would block
                yield entry.path


def open_list(file: str | os.PathLike) -> FileSource:
    """Returns the image files that a text file lists, one path a line, relative to its folder, in its order.

    Empty lines and those that start with # do not count.

    Raises:
        ValueError: for a missing, unreadable or empty list.
    """
    try:
        # Editors on Windows begin a text with a byte order mark.
        lines = [line.strip() for line in Path(file).read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise ValueError(f"cannot read the list of images {file}: {reason} (now in {os.getcwd()})") from error
    paths = [line for line in lines if line and not line.startswith("#")]
    if not paths:
        raise ValueError(f"the list {file} names no images: write one path a line, relative to the list")
    return FileSource(os.path.dirname(os.fspath(file)), paths)


def open_coco(root: str | os.PathLike, parts: tuple[str, ...] = ("train2017",)) -> ImageSource:
    """Returns the training images of COCO 2017 (118 k).

    Args:
        root: folder in which the archives of the parts were unpacked.
        parts: folders of images, one after another.

    Raises:
        ValueError: for a missing part, with its URL.
    """
    folders = [Path(root) / part for part in parts]
    if missing := [folder for folder in folders if not folder.is_dir()]:
        urls = " and ".join(f"{_COCO_URL}/{folder.name}.zip" for folder in missing)
        raise ValueError(f"no folder {' and '.join(map(str, missing))}: unpack {urls} in {root} (now in {os.getcwd()})")
    return CombinedSource([FolderSource(folder) for folder in folders])


def open_coco_plus(root: str | os.PathLike) -> ImageSource:
    """Returns the images of COCO+ (241 k), which adds the unlabeled ones; arguments and errors as for `open_coco`."""
    return open_coco(root, ("train2017", "unlabeled2017"))


def open_imagenet(root: str | os.PathLike) -> FolderSource:
    """Returns the training images of ImageNet (1.28 M).

    Args:
        root: holds train with one folder a class, or these folders themselves.

    Raises:
        ValueError: if there are no such folders, with their URL.
    """
    train = Path(root) / "train"
    folder = train if train.is_dir() else Path(root)
    # Without train, what lies beside it must not be taken for classes.
    parts = {entry.name for entry in folder.iterdir() if entry.is_dir()} if folder.is_dir() else set()
    if not parts - {"val", "test"}:
        raise ValueError(
            f"no folder {train} with one folder of images a class, nor such folders in {root}: get "
            f"ILSVRC2012_img_train.tar from {_IMAGENET_URL} and unpack each class in its folder (now in {os.getcwd()})"
        )
    return FolderSource(folder)
