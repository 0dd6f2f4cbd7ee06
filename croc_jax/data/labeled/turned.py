"""Images that their EXIF orientation turned: labels that only fit the stored image turn along, and one line says so."""

import collections
from pathlib import Path
from typing import Literal

from croc_jax.data.decoding import Header
from croc_jax.data.labeled.label_files import Ids
from croc_jax.data.orientation import UPRIGHT, turn
from croc_jax.data.sources.base import tell

Fit = Literal["stored", "upright", "either"]


class TurnedImages:
    """Counts the images of a data set that were turned, and what their labels fit."""

    def __init__(self) -> None:
        """Counts nothing yet."""
        self._fits: dict[str, Fit | None] = {}

    def add(self, image: str | Path, header: Header, fit: Fit | None = None) -> None:
        """Counts an image if its orientation turns it; the same one counts once.

        Args:
            image: its name.
            header: its size and orientation.
            fit: what its labels fit, if they have a size.
        """
        if header.orientation != UPRIGHT:
            self._fits[str(image)] = fit

    def turn_along(self, ids: Ids, image: Path, header: Header) -> Ids:
        """Returns labels as `turn_along` does, and counts their image; arguments as for `add`."""
        self.add(image, header, fit_of(ids.shape, header))
        return turn_along(ids, header)

    def tell(self, name: object) -> None:
        """Logs once how many images of the data set of this name were turned, if any."""
        if self._fits:
            text = f"EXIF orientation turned {len(self._fits)} images of {name}, such as {min(self._fits)}"
            counts = collections.Counter(self._fits.values())
            if None not in counts:
                text += f"; the labels of {counts['stored']} fit only the stored image, and were turned along"
                text += f"; those of {counts['either']} fit either way, and were left as they are"
            tell(text)


def fit_of(size: tuple[int, ...], header: Header) -> Fit:
    """Returns what labels of this height and width fit: the image as stored, turned upright, or either.

    Labels of an unknown or another size count as those of the upright image.
    """
    if size == header.stored:
        return "either" if header.stored == header.size else "stored"
    return "upright"


def turn_along(ids: Ids, header: Header) -> Ids:
    """Returns labels that only fit the stored image turned as the image is, and others unchanged."""
    return turn(ids, header.orientation) if fit_of(ids.shape, header) == "stored" else ids
