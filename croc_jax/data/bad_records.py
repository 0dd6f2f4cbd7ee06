"""Keeps account of images that cannot be read, and says when they are too many."""

from pathlib import Path

from absl import logging

# Among fewer images, chance alone could look like a damaged collection.
LEAST_IMAGES = 1000


class UnreadableImagesError(RuntimeError):
    """So many images are unreadable that something is wrong with all of them."""


class ReadersLostError(RuntimeError):
    """A process that reads images was ended from outside."""


class DamageAccount:
    """Counts unreadable images, and names each once in the log and in a file.

    Attributes:
        counts: how often each unreadable image was replaced by another one, by name.
    """

    def __init__(self, *, file: Path | None = None, max_fraction: float = 1.0) -> None:
        """Starts at zero.

        Args:
            file: gets a line for each image, its name and the reason; what is there stays.
            max_fraction: the largest share of unreadable ones among the images read.
        """
        self.counts: dict[str, int] = {}
        self._file, self._max_fraction = file, max_fraction
        self._read = self._bad = 0

    def knows(self, name: str) -> bool:
        """Says whether an image has been named."""
        return name in self.counts

    def add(self, name: str, reason: str = "") -> None:
        """Counts an unreadable image.

        Args:
            name: of the image.
            reason: why, needed the first time.
        """
        if not self.knows(name):
            logging.warning("skipping an unreadable image: %s (%s)", name, reason)
            self._list(name, reason)
        self.counts[name] = self.counts.get(name, 0) + 1
        self._bad += 1

    def _list(self, name: str, reason: str) -> None:
        if self._file is None:
            return
        # Other processes, and the run before it was resumed, write here too.
        listed = self._file.read_text(encoding="utf-8").splitlines() if self._file.is_file() else []
        if name not in (line.partition("\t")[0] for line in listed):
            with self._file.open("a", encoding="utf-8") as file:
                file.write(f"{name}\t{' '.join(reason.split())}\n")

    def judge(self, read: int) -> None:
        """Takes note of images that were read well, and raises if too many were not.

        Args:
            read: how many since the last call.

        Raises:
            UnreadableImagesError: for a larger share than allowed, from `LEAST_IMAGES` on.
        """
        self._read += read
        total = self._read + self._bad
        if total >= LEAST_IMAGES and self._bad > self._max_fraction * total:
            examples = ", ".join(list(self.counts)[:3])
            listed = f" (all are listed in {self._file})" if self._file else ""
            raise UnreadableImagesError(
                f"{self._bad} of {total} images could not be read, such as {examples}{listed}: more than "
                f"data.max_bad_fraction={self._max_fraction} allows. Repair or remove them, or raise it (1 allows all)"
            )
