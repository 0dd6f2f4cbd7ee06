"""The interface of all sources of images, and what several of them need."""

import collections
import functools
import multiprocessing
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from absl import logging

from croc_jax.data.bad_records import printable
from croc_jax.data.formats import ARRAY_SUFFIX, HINTS, LABEL_SUFFIXES, SUFFIXES

# What systems, file servers and tools put beside images, in lower case; besides these, all that begins with a dot.
_SYSTEM_NAMES = {
    "__macosx", "@eadir", "@recycle", "@recently-snapshot", "@tmp", "#recycle", "#snapshot", "$recycle.bin",
    "system volume information", "lost+found", "network trash folder", "temporary items", "thumbs.db", "ehthumbs.db",
    "desktop.ini", "icon\r", "__pycache__", ".ipynb_checkpoints", ".thumbnails", ".appledouble", ".git", ".ds_store",
    ".trash", ".trashes", ".@__thumb",
}  # fmt: skip


class ImageSource(Protocol):
    """Encoded images in a fixed order; picklable, since worker processes read from copies."""

    def __len__(self) -> int:
        """Returns the number of images."""
        ...

    def __getitem__(self, index: int) -> bytes:
        """Returns the encoded image; raises OSError if it cannot be read."""
        ...

    def name(self, index: int) -> str:
        """Returns the name of the image in messages; the same in every process and run."""
        ...

    def entries(self) -> Iterator[tuple[str, int]]:
        """Yields names and sizes in bytes of the images in order, or of the files that hold them; reads no image.

        Names are relative to the source, so that the same images in another place have the same ones.
        """
        ...


def is_image(path: str) -> bool:
    """Returns whether a path has the suffix of an image that can be read (`SUFFIXES`), and is no sidecar."""
    return path.lower().endswith(SUFFIXES) and not is_sidecar(path)


def is_array(path: str) -> bool:
    """Returns whether a path has the suffix of a NumPy array (`ARRAY_SUFFIX`), and is no sidecar."""
    return path.lower().endswith(ARRAY_SUFFIX) and not is_sidecar(path)


def find_images(paths: Sequence[str]) -> list[str]:
    """Returns the files of a source that are images, in their order: arrays only if there are no others.

    Examples:
        >>> find_images(["a.png", "a.npy"]), find_images(["a.npy", "a.txt"])
        (['a.png'], ['a.npy'])
    """
    return list(filter(is_image, paths)) or list(filter(is_array, paths))


def is_label(path: str) -> bool:
    """Returns whether a path has the suffix of a file of labels (`LABEL_SUFFIXES`), and is no sidecar."""
    return path.lower().endswith(LABEL_SUFFIXES) and not is_sidecar(path)


def is_sidecar(path: str) -> bool:
    """Returns whether a path, below what a person named, is hidden or a system's: no image, class, label or frame.

    Hidden is what begins with a dot, at any depth, such as ._a.jpg and .git/; systems add __MACOSX, @eaDir, lost+found.

    Examples:
        >>> [is_sidecar(path) for path in ("./a.jpg", "cat/._a.jpg", "@eaDir/a.jpg/thumb.jpg", ".ipynb_checkpoints")]
        [False, True, True, True]
    """
    folder, _, name = path.rpartition("/")
    return _is_hidden(name) or (folder != "" and _has_hidden(folder))


def is_in_system_folder(path: str) -> bool:
    """Returns whether a system or a tool made a file or a folder above it; other hidden folders may be anyone's."""
    folder, _, name = path.rpartition("/")
    return _is_hidden(name) or (folder != "" and _has_system_name(folder))


def _is_hidden(name: str) -> bool:
    return (name[:1] == "." and name.strip(".") != "") or name.lower() in _SYSTEM_NAMES


# Millions of paths share few folders.
@functools.lru_cache
def _has_hidden(folder: str) -> bool:
    return any(map(_is_hidden, folder.split("/")))


@functools.lru_cache
def _has_system_name(folder: str) -> bool:
    return not _SYSTEM_NAMES.isdisjoint(folder.lower().split("/"))


def report_left_out(
    where: object, paths: Sequence[str], *, others: Mapping[str, int] | None = None, taken: int | None = None
) -> None:
    """Logs once how many files are not read, by suffix; annotations are expected, unreadable formats are not.

    Args:
        where: the source or the folder.
        paths: those that are left out, relative to it.
        others: how many are left out for another reason than their name, by reason.
        taken: number of files that are read.
    """
    counts = collections.Counter(map(kind_of, paths)) + collections.Counter(others or {})
    if counts:
        hints = {kind: f" ({HINTS[kind]})" if kind in HINTS else "" for kind in counts}
        listed = ", ".join(f"{count} {kind}{hints[kind]}" for kind, count in sorted(counts.items()))
        read = "" if taken is None else f"{taken} files are read, "
        tell(f"{where}: {read}{counts.total()} are left out: {listed}")


def tell(message: str) -> None:
    """Logs a warning about data once: not again for another split, nor in a worker that opens the data again."""
    if multiprocessing.parent_process() is None:
        _tell(printable(message))


@functools.cache
def _tell(message: str) -> None:
    logging.warning("%s", message)


def kind_of(path: str) -> str:
    """Returns what a file that is left out counts as: its suffix in lower case, or that it is hidden."""
    if is_sidecar(path):
        return "hidden or of the system"
    suffix = os.path.splitext(path)[1].lower()
    # In a folder of ids, what follows a dot may be anything.
    return suffix if suffix[1:].isalnum() and len(suffix) <= 12 else "without suffix"


def split_choice(value: str) -> tuple[str, str]:
    """Splits PATH@CHOICE, where the choice is one of several images of a sample; it is empty if there is none.

    What exists under the whole name is a path.
    """
    path, at, choice = value.rpartition("@")
    return (path, choice) if at and choice and "/" not in choice and not os.path.exists(value) else (value, "")


def find_image_feature(
    where: str, images: Sequence[str], features: Sequence[str], *, nested: Sequence[str], chosen: str, form: str
) -> str:
    """Returns the image feature of a data set: the chosen one, the only one, or the one called image.

    Args:
        where: name of the data set for messages.
        images: names of the features that are one image each.
        features: names of all features.
        nested: names of those that hold images in a sequence or a group.
        chosen: the feature that the spec asks for; "" for none.
        form: a spec up to the name of a feature, such as "hf:FOLDER@".

    Raises:
        ValueError: if there is no image feature, or not the chosen one, or several and none is called image.
    """
    note = f" (images in sequences and groups, as in {', '.join(nested)}, are not read)" if nested else ""
    choices = " or ".join(f"{form}{name}" for name in images)
    if not images:
        raise ValueError(f"the data set {where} has no image feature, only {', '.join(features)}{note}: choose another")
    if chosen and chosen not in images:
        raise ValueError(f"{chosen!r} is no image feature of the data set {where}{note}: write {choices}")
    if chosen or len(images) == 1:
        return chosen or images[0]
    if "image" not in images:
        raise ValueError(
            f"the data set {where} has several image features ({', '.join(images)}), none called image: write {choices}"
        )
    tell(f"{where}: of the image features {', '.join(images)}, image is read (to choose, write {choices})")
    return "image"
