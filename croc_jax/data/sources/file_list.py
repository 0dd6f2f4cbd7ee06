"""The image files that a text file lists."""

import os
from pathlib import Path

from croc_jax.data.sources.folder import FileSource


class ListSource(FileSource):
    """The image files that a text file lists, one path a line, in its order.

    Paths are relative to the folder of the list. Empty lines and those that start with # do not
    count.
    """

    def __init__(self, file: str | os.PathLike) -> None:
        """Reads the list, but none of its images.

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
        super().__init__(os.path.dirname(os.fspath(file)), paths)
