"""Image files: a folder, a list of paths, and the folders of COCO and ImageNet."""

import os
import re
import stat
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from croc_jax.data.formats import ARRAY_SUFFIX, HINTS
from croc_jax.data.sources.base import (
    SUFFIXES,
    ImageSource,
    find_images,
    is_image,
    is_in_system_folder,
    report_left_out,
    tell,
)
from croc_jax.data.sources.combined import CombinedSource
from croc_jax.data.sources.entries import list_entries, list_tree
from croc_jax.data.text_lists import Line, read_lines
from croc_jax.machine_errors import is_machine_error
from croc_jax.paths import is_remote, local_path
from croc_jax.regular_files import read_regular

# Files of a list that are looked for when it is opened: all of them would take minutes on a network file system.
NUM_CHECKED = 1000
_LISTED = (*SUFFIXES, ARRAY_SUFFIX)
# A path, then labels or another path.
_WITH_MORE = re.compile(rf".*({'|'.join(map(re.escape, _LISTED))})[\"']?[\s,;|:]", re.IGNORECASE)

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
        return read_regular(self.name(index))

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
        """Lists the files that have the suffix of an image (`SUFFIXES`, in any case), or arrays if there are none.

        Raises:
            ValueError: for a missing folder, one without images, or one below it that cannot be listed.
        """
        folder = str(local_path(folder, name="folder"))
        if not os.path.isdir(folder):
            raise ValueError(
                f"the image folder {folder} {_why_no_folder(folder)}: correct the path (now in {os.getcwd()})"
            )
        found = list_tree(folder)
        paths = sorted(find_images(found.files))
        left_out = [*set(found.files).difference(paths), *found.sidecars]
        report_left_out(folder, left_out, others=found.others, taken=len(paths))
        if not paths:
            raise ValueError(f"no images in {folder} or below it: looked for {', '.join(_LISTED)} files (in any case)")
        super().__init__(folder, paths)


def _size(file: str) -> int:
    """Returns the size of a file, or -1 if there is none; raises OSError if the file system fails."""
    try:
        return os.stat(file).st_size
    except OSError as error:
        if is_machine_error(error):
            raise
        return -1


def open_list(file: str | os.PathLike) -> FileSource:
    """Returns the image files that a text file lists, one path a line, relative to its folder, in its order.

    Empty lines do not count, nor those that start with # unless a file has this name. `NUM_CHECKED`
    files are looked for, and as many without the suffix of an image: what is no path is found here,
    not as unreadable images later. Of proper paths, the first must exist; others that do not are told.

    Raises:
        ValueError: for a missing, unreadable or empty list, and at the first line that is no path.
    """
    folder, paths, left_out, num_commented, num_odd = os.path.dirname(os.fspath(file)), [], [], 0, 0
    missing: list[Line] = []
    for line in read_lines(file, what="list of images", comments=False):
        if line.text.startswith("#") and not os.path.exists(os.path.join(folder, line.text)):
            num_commented += is_image(line.text)
            continue
        path = os.path.expanduser(line.text) if line.text.startswith("~") else line.text
        if is_in_system_folder(path):
            left_out.append(path)
            continue
        has_suffix = path.lower().endswith(_LISTED)
        num_odd += not has_suffix
        if line.number <= NUM_CHECKED or (not has_suffix and num_odd <= NUM_CHECKED):
            exists = _check_listed(file, line, os.path.join(folder, path), may_miss=has_suffix and len(paths) > 0)
            missing += [] if exists else [line]
        is_known = has_suffix or os.path.splitext(path)[1].lower() not in HINTS
        (paths if is_known else left_out).append(path)
    commented = {"images in lines that start with #": num_commented} if num_commented else {}
    report_left_out(file, left_out, others=commented, taken=len(paths))
    if missing:
        example = f"line {missing[0].number}, {missing[0].text!r}"
        tell(f"{file}: {len(missing)} files do not exist ({example}), and will count as unreadable images")
    if not paths:
        raise ValueError(f"the list {file} names no images: write one path a line, relative to the list")
    return FileSource(folder, paths)


def _why_no_folder(path: str) -> str:
    """Returns why a path is no folder; raises OSError for a fault of the machine."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return "does not exist"
    except OSError as error:
        if is_machine_error(error):
            raise
        return f"cannot be reached ({error.strerror})"
    return "is a file"


def _check_listed(file: str | os.PathLike, line: Line, path: str, *, may_miss: bool) -> bool:
    """Returns whether the file of a line exists; raises ValueError, with what is wrong, if the line is no path.

    Where a file may not miss, or is no regular file, this is an error, too.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        if is_machine_error(error):
            raise
        if is_remote(line.text):
            reason = "no URL is read here: name a path on a mounted disk"
        elif line.text[0] in "\"'":
            reason = "write the path without quotes"
        elif "\\" in line.text:
            reason = "write / between folders, and paths relative to the list"
        elif _WITH_MORE.match(line.text):
            reason = "write the path alone: more stands behind it"
        elif may_miss and isinstance(error, FileNotFoundError):
            return False
        else:
            reason = f"{error.strerror}; write one path a line, relative to the list, without a header"
        raise line.error(file, reason) from None
    if not stat.S_ISREG(mode):
        kind = "a folder: read it with folder:PATH" if stat.S_ISDIR(mode) else "no regular file: remove the line"
        raise line.error(file, f"this is {kind}")
    return True


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
    parts = set(list_entries(folder).folders) if folder.is_dir() else set()
    if not parts - {"val", "test"}:
        raise ValueError(
            f"no folder {train} with one folder of images a class, nor such folders in {root}: get "
            f"ILSVRC2012_img_train.tar from {_IMAGENET_URL} and unpack each class in its folder (now in {os.getcwd()})"
        )
    return FolderSource(folder)
