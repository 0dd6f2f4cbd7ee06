"""What lies in a folder: regular files and folders, apart from hidden and system files and from what would block."""

import collections
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from croc_jax.data.sources.base import is_image, is_sidecar, tell
from croc_jax.machine_errors import is_machine_error

# Folders that link to each other are reached along very many ways.
MAX_AGAIN = 100_000


class Entries(NamedTuple):
    """Names in a folder, or paths relative to it, by what they are; in no order.

    Attributes:
        files: regular files, also through links; links to nothing that are called images are among them, since they
            may come back with a mount, and count as unreadable until then.
        folders: folders, also through links.
        sidecars: hidden and system files and folders (`is_sidecar`).
        others: how many are something else, by kind, such as pipes and devices, which would block a reader.
    """

    files: list[str]
    folders: list[str]
    sidecars: list[str]
    others: collections.Counter[str]


def list_entries(folder: str | os.PathLike) -> Entries:
    """Lists one folder.

    Raises:
        ValueError: if it cannot be listed.
        OSError: for a fault of the machine.
    """
    found = Entries([], [], [], collections.Counter())
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_sidecar(entry.name):
                    found.sidecars.append(entry.name)
                    continue
                kind = _kind_of(entry)
                if kind == "folder":
                    found.folders.append(entry.name)
                elif kind == "file" or (kind == "link to nothing" and is_image(entry.name)):
                    found.files.append(entry.name)
                else:
                    found.others["pipes, sockets or devices" if kind == "other" else "links to nothing"] += 1
    except OSError as error:
        if is_machine_error(error):
            raise
        raise ValueError(
            f"cannot list the folder {folder}: {error.strerror}; correct its permissions, or move it away"
        ) from error
    return found


def list_tree(folder: str | os.PathLike) -> Entries:
    """Lists a folder and all below it, through links too but not around in circles; `folders` stays empty.

    Raises:
        ValueError: if one of the folders cannot be listed (see `list_entries`), or links tie folders into a knot.
    """
    found, visited, num_again = Entries([], [], [], collections.Counter()), set(), 0
    pending: list[tuple[str, tuple[str, ...]]] = [("", ())]
    while pending:
        prefix, above = pending.pop()
        path = os.path.join(folder, prefix)
        real = os.path.realpath(path)
        if real in above:
            found.others["links to a folder above them"] += 1
            continue
        num_again += real in visited
        if num_again > MAX_AGAIN:
            raise ValueError(f"{folder}: links lead to the same folders over and over, as {path}: remove such links")
        visited.add(real)
        entries = list_entries(path)
        found.files.extend(prefix + name for name in entries.files)
        found.sidecars.extend(prefix + name for name in entries.sidecars)
        found.others.update(entries.others)
        pending += [(f"{prefix}{name}/", (*above, real)) for name in entries.folders]
    if num_again:
        tell(f"{folder}: {num_again} folders are listed again through links, and their files count again")
    return found


def check_stems(folder: str | os.PathLike, names: Iterable[str]) -> dict[str, str]:
    """Returns names by their stem.

    Args:
        folder: where they lie, for the message.
        names: names of files, or paths.

    Raises:
        ValueError: if two differ by their suffix alone.
    """
    by_stem: dict[str, str] = {}
    for name in names:
        first = by_stem.setdefault(name.rpartition(".")[0], name)
        if first is not name:
            raise ValueError(
                f"{Path(folder, first)} and {os.path.basename(name)} have the same stem: rename or remove one of them"
            )
    return by_stem


def _kind_of(entry: os.DirEntry[str]) -> str:
    try:
        if entry.is_dir():
            return "folder"
        if entry.is_file():
            return "file"
        return "link to nothing" if entry.is_symlink() and not os.path.exists(entry.path) else "other"
    except OSError as error:  # Such as a link to itself.
        if is_machine_error(error):
            raise
        return "link to nothing"
