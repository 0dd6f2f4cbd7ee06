"""Images that their EXIF orientation turned: labels that only fit the stored image turn along, and one line says so."""

import functools
from pathlib import Path

from absl import logging

from croc_jax.data.decoding import Header
from croc_jax.data.labeled.label_files import Ids
from croc_jax.data.orientation import UPRIGHT, turn


class TurnedImages:
    """Counts the images of a data set that were turned, and those whose labels were turned along."""

    def __init__(self) -> None:
        """Counts nothing yet."""
        self._along: dict[str, bool] = {}

    def add(self, image: str | Path, header: Header, *, along: bool = False) -> None:
        """Counts an image if its orientation turns it; the same one counts once.

        Args:
            image: its name.
            header: its size and orientation.
            along: whether its labels were turned along.
        """
        if header.orientation != UPRIGHT:
            self._along[str(image)] = along

    def turn_along(self, ids: Ids, image: Path, header: Header) -> Ids:
        """Returns labels as `turn_along` does, and counts their image; arguments as for `add`."""
        turned = turn_along(ids, header)
        self.add(image, header, along=turned is not ids)
        return turned

    def tell(self, name: object) -> None:
        """Logs once how many images of the data set of this name were turned, if any."""
        if self._along:
            _warn_once(
                f"EXIF orientation turned {len(self._along)} images of {name}, such as {min(self._along)}; the labels "
                f"of {sum(self._along.values())} fit only the image as it is stored, and were turned along"
            )


@functools.cache
def _warn_once(text: str) -> None:
    logging.warning("%s", text)


def fits_stored(size: tuple[int, ...], header: Header) -> bool:
    """Returns whether labels of this height and width fit an image as it is stored, and not the upright one."""
    return header.stored == size != header.size


def turn_along(ids: Ids, header: Header) -> Ids:
    """Returns labels that only fit the stored image turned as the image is, and others unchanged."""
    return turn(ids, header.orientation) if fits_stored(ids.shape, header) else ids
