"""One rule for the paths that people name: ~ is expanded, and what lies behind a URL is refused."""

import os
import re
from pathlib import Path

_SCHEME = re.compile(r"\s*([A-Za-z][A-Za-z0-9+.-]+):/")


def is_remote(path: str | os.PathLike) -> bool:
    """Returns whether a path is a URL, such as gs://bucket/name, and no name on a mounted disk."""
    return _SCHEME.match(os.fspath(path)) is not None


def file_in_the_way(folder: Path) -> Path | None:
    """Returns what would have to be a folder for this one to exist, but is a file; or None."""
    return next((one for one in (folder, *folder.parents) if os.path.isfile(one)), None)


def local_path(path: str | os.PathLike, *, name: str) -> Path:
    """Returns a path on a mounted disk, with ~ expanded.

    Args:
        path: as a person wrote it.
        name: the flag or the field that holds it, for the message, such as "--workdir".

    Raises:
        ValueError: for a URL, an empty path, or a ~ without a home folder.

    Examples:
        >>> local_path("photos/cat.jpg", name="--image").as_posix()
        'photos/cat.jpg'
    """
    text = os.fspath(path)
    if not text.strip():
        raise ValueError(f"{name} is empty: name a path")
    if scheme := _SCHEME.match(text):
        raise ValueError(
            f"{name}={text}: {scheme[1]}:// is not read or written here: name a path on a mounted disk "
            "(mount the bucket, or copy it)"
        )
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{name}={text}: there is no such home folder: write the path without ~") from error
