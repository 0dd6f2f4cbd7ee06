"""The file of statistics of images that launch/prepare.py writes and recipes name: range, mean and deviation."""

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path

from croc_jax.atomic_write import atomic_write
from croc_jax.paths import local_path
from croc_jax.pixel_format import PixelFormat

_NUMBERS = ("range", "mean", "std", "percentiles")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Statistics:
    """Measured properties of images.

    Attributes:
        channels: channels of an image.
        dtype: type of the stored values.
        range: what becomes 0 and 1, see `PixelFormat`; low and high of each channel where it was measured.
        mean: mean of each channel after the range has become 0 to 1, and what lies beyond it has been clipped.
        std: standard deviation of each channel then.
        percentiles: those that the range was measured as, if it was.
        images: images that were measured.
        total: images of the sources; windows count as such.
        pixels: pixels that were measured.
        window: side of the windows in pixels, or 0.
        sources: where the images were.
        digest: what identifies them, see `croc_jax.data.sources.identity`.
        version: version of this package that has measured.
    """

    channels: int
    dtype: str
    range: tuple[float, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    percentiles: tuple[float, ...]
    images: int
    total: int
    pixels: int
    window: int
    sources: tuple[str, ...]
    digest: str
    version: str

    def __post_init__(self) -> None:
        """Raises ValueError, naming the field and the value, for what cannot be."""
        PixelFormat(channels=self.channels, dtype=self.dtype, range=self.range)
        for name, least in (("mean", 0.0), ("std", 1e-9)):
            values = getattr(self, name)
            if len(values) != self.channels or not all(least <= value <= 1 for value in values):
                raise ValueError(f"{name}={values}: one number a channel, from 0 to 1")
        check_percentiles(self.percentiles)


def check_percentiles(percentiles: Sequence[float]) -> None:
    """Raises ValueError unless there are two percentiles, the smaller first, or none."""
    if percentiles and (len(percentiles) != 2 or not 0 <= percentiles[0] < percentiles[1] <= 100):
        raise ValueError(f"percentiles={percentiles}: give two numbers from 0 to 100, the smaller first")


def write_statistics(file: Path, statistics: Statistics) -> None:
    """Writes statistics as JSON, a line a field; OSError if that fails."""
    fields = dataclasses.asdict(statistics)
    for name in _NUMBERS:
        fields[name] = [int(value) if value == int(value) else value for value in fields[name]]
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(value)}" for name, value in fields.items())
    atomic_write(file, f"{{\n{lines}\n}}\n".encode())


def read_statistics(path: str | os.PathLike, *, name: str = "data.statistics") -> Statistics:
    """Returns the statistics in a file.

    Args:
        path: the file, relative to the working directory; ~ is expanded.
        name: the setting that names it, for messages.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it holds something else.
    """
    file = local_path(path, name=name)
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
        numbers = {key: tuple(map(float, fields[key])) for key in _NUMBERS}
        return Statistics(**fields | numbers | {"sources": tuple(fields["sources"])})
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{name}={path}: there is no such file (now in {os.getcwd()}): correct the path, or write it with "
            f"launch/prepare.py --statistics={path}"
        ) from error
    except (ValueError, LookupError, TypeError, ArithmeticError, RecursionError, OSError) as error:
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {' '.join(str(error)[:300].split())}"
        raise ValueError(
            f"{name}={path} does not hold statistics as launch/prepare.py --statistics writes them ({reason})"
        ) from error
