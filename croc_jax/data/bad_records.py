"""Counts unreadable images, lists them in a file, and raises when there are too many."""

import contextlib
import errno
import os
from pathlib import Path

from absl import logging

# Among fewer images, chance alone could look like a damaged collection.
MIN_IMAGES = 1000


def printable(text: str) -> str:
    r"""Returns a text of one line that any terminal and file can hold: control and surrogate characters as escapes.

    Examples:
        >>> print(printable("a\nb\udce9.jpg"))
        a\nb\udce9.jpg
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class UnreadableImagesError(RuntimeError):
    """So many images are unreadable that something is wrong with all of them."""


class ReadersLostError(RuntimeError):
    """A worker process that reads images died."""


class BadRecords:
    """Counts unreadable images, and names each once in the log and in a file.

    Attributes:
        counts: how often each unreadable image was replaced by another one, by name.
    """

    def __init__(self, *, file: Path | None = None, max_fraction: float = 1.0) -> None:
        """Starts at zero.

        Args:
            file: gets a line for each image, its name and the reason; existing lines stay.
            max_fraction: the largest share of unreadable images among those read.
        """
        self.counts: dict[str, int] = {}
        self._file, self._max_fraction = file, max_fraction
        self._num_good, self._are_gone = 0, True
        self._listed, self._num_read = set[bytes](), 0

    def add(self, name: str, reason: str) -> None:
        """Counts an unreadable image; the reason is logged the first time."""
        name, reason = printable(name), printable(" ".join(reason.split()))
        if name not in self.counts:
            logging.warning("skipping an unreadable image: %s (%s)", name, reason)
            self._list(name, reason)
            self._are_gone &= os.strerror(errno.ENOENT) in reason
        self.counts[name] = self.counts.get(name, 0) + 1

    def _list(self, name: str, reason: str) -> None:
        if self._file is None:
            return
        # The log has it, too: a full disk ends no run here.
        with contextlib.suppress(OSError), self._file.open("a+b") as file:
            # Other processes, and the run before it was resumed, write here too.
            file.seek(self._num_read)
            new = file.read()
            self._num_read += len(new)
            self._listed.update(line.partition(b"\t")[0] for line in new.splitlines())
            if name.encode() not in self._listed:
                file.write(f"{name}\t{reason}\n".encode())

    def check(self, num_good: int) -> None:
        """Counts images that were read well, and raises if too many were not.

        Args:
            num_good: images read since the last call.

        Raises:
            UnreadableImagesError: for a larger share than allowed, from `MIN_IMAGES` on.
        """
        self._num_good += num_good
        bad = sum(self.counts.values())
        total = self._num_good + bad
        if total >= MIN_IMAGES and bad > self._max_fraction * total:
            examples = ", ".join(list(self.counts)[:3])
            listed = f" (all are listed in {self._file})" if self._file else ""
            remedy = (
                "They are gone: is their disk still mounted?"
                if self._are_gone
                else "Repair or remove them, or raise it (1 allows all)"
            )
            raise UnreadableImagesError(
                f"{bad} of {total} images could not be read, such as {examples}{listed}: more than "
                f"data.max_bad_fraction={self._max_fraction} allows. {remedy}"
            )
