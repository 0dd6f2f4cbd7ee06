"""Measures the range, mean and deviation of the channels of images, with several processes."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.synchronize import Event
from typing import NamedTuple

import numpy as np
from jaxtyping import Real

from croc_jax.data.bad_records import printable
from croc_jax.data.channels import decode_pixels
from croc_jax.data.decoding import DecodeError
from croc_jax.data.pools import work_on
from croc_jax.data.sources import ImageSource, open_sources
from croc_jax.data.sources.identity import identify
from croc_jax.data.statistics import Statistics, check_percentiles
from croc_jax.machine_errors import find_fault, read_patiently
from croc_jax.pixel_format import PixelFormat
from croc_jax.version import __version__

# Of the images, and of pixels where these are drawn.
_SEED = 0
# Floating-point values have no histogram: pixels that are drawn from each image, and from all of them at most.
_PIXELS_AN_IMAGE, _MAX_DRAWN = 4096, 2**22
_IMAGES_A_TASK = 32
_DIGITS = 6


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeasureConfig:
    """What to measure.

    Attributes:
        sources: the images, each KIND:VALUE or a folder.
        channels: channels of an image.
        dtype: type of the stored values.
        percentiles: shares of the values, in percent, that lie below the low and the high end of the range; empty to
            take `range`.
        range: as in `PixelFormat`, where there are no percentiles.
        window: side in pixels of the windows that larger images are divided into; 0 for none.
        max_images: images to measure at most, drawn at random from all.
    """

    sources: tuple[str, ...]
    channels: int = 3
    dtype: str = "uint8"
    percentiles: tuple[float, ...] = ()
    range: tuple[float, ...] = ()
    window: int = 0
    max_images: int = 10_000

    def __post_init__(self) -> None:
        """Raises ValueError, naming the field and the value, for settings that cannot work."""
        check_percentiles(self.percentiles)
        if self.percentiles and self.range:
            raise ValueError(f"range={self.range}, percentiles={self.percentiles}: give one of them")
        for name, least in (("window", 0), ("max_images", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: must be {least} or more")
        _ = self.pixels

    @property
    def pixels(self) -> PixelFormat:
        """The format that images are read in: as in training, though a range that is to be measured is not known."""
        return PixelFormat(
            channels=self.channels, dtype=self.dtype, range=(0.0, 1.0) if self.percentiles else self.range
        )


class Measured(NamedTuple):
    """Statistics, and what was left out.

    Attributes:
        statistics: what was measured.
        skipped: why images could not be read, by name.
    """

    statistics: Statistics
    skipped: dict[str, str]


def default_percentiles(dtype: str) -> tuple[float, ...]:
    """Returns percentiles for a type whose whole range is seldom used, or unknown; none for 8 bits."""
    return () if dtype == "uint8" else (0.5, 99.5)


def measure(
    config: MeasureConfig,
    *,
    num_workers: int | None = None,
    show: Callable[[int, int], None] = lambda done, total: None,
) -> Measured:
    """Measures range, mean and deviation of the channels of images.

    Of integers, all pixels of the images that are drawn count, exactly. Of floating-point values, 4096 pixels drawn
    from each image do, and fewer of more than 1024 images: 4 million in all, so that a share of 0.5% is known to
    0.004%. A percentile is the least value with so large a share of the values at or below it.

    Args:
        config: the images, and what to measure.
        num_workers: processes; 1 works in this one; by default one a core.
        show: called with the numbers of images done and of all that are drawn.

    Raises:
        ValueError: if a source cannot be opened, no image can be read, or a channel has a single value.
        OSError: for a fault of the machine.
    """
    source = open_sources(config.sources, window=config.window, pixels=config.pixels)
    indices = np.sort(np.random.default_rng(_SEED).permutation(len(source))[: config.max_images])
    limit = max(1, min(_PIXELS_AN_IMAGE, _MAX_DRAWN // len(indices)))
    tasks = [(part.tolist(), config, limit) for part in np.array_split(indices, -(-len(indices) // _IMAGES_A_TASK))]
    tally, skipped, done = Tally(config), dict[str, str](), 0
    show(0, len(indices))
    for number, (found, bad) in work_on(source, _tally_images, tasks, num_workers=num_workers):
        tally.add(found)
        skipped |= bad
        done += len(tasks[number][0])
        show(done, len(indices))
    if not tally.pixels:
        name, reason = next(iter(skipped.items()))
        listed = ", ".join(config.sources)
        raise ValueError(f"no image of {listed} could be read, such as {printable(name)} ({printable(reason)})")
    limits = tally.limits(config.percentiles) if config.percentiles else list(zip(*config.pixels.limits, strict=True))
    mean, std = tally.moments(limits)
    statistics = Statistics(
        channels=config.channels,
        dtype=config.dtype,
        range=tuple(value for pair in limits for value in pair) if config.percentiles else config.range,
        mean=tuple(map(_rounded, mean)),
        std=tuple(map(_rounded, std)),
        percentiles=config.percentiles,
        images=len(indices) - len(skipped),
        total=len(source),
        pixels=tally.pixels,
        window=config.window,
        sources=config.sources,
        digest=identify(source).digest,
        version=__version__,
    )
    return Measured(statistics, skipped)


def _tally_images(
    source: ImageSource, stop: Event, indices: Sequence[int], config: MeasureConfig, limit: int
) -> tuple["Tally", dict[str, str]]:
    """Returns what is seen in some images, and why others cannot be read, by name; OSError for a machine's fault."""
    tally, skipped = Tally(config), {}
    for index in indices:
        if stop.is_set():
            break
        try:
            encoded = read_patiently(functools.partial(source.__getitem__, index))
            # Drawn pixels are a function of the image alone, whatever process reads it.
            tally.look(decode_pixels(encoded, config.pixels), limit, np.random.default_rng((_SEED, index)))
        except (DecodeError, OSError, MemoryError) as error:
            if fault := find_fault(error, source.name(index)):
                raise fault from error
            skipped[source.name(index)] = " ".join(str(error).split())
    return tally, skipped


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


class Tally:
    """What has been seen of each channel: a histogram of integers, or drawn floating-point values.

    Attributes:
        pixels: pixels that have been counted or drawn.
    """

    def __init__(self, config: MeasureConfig) -> None:
        """Starts at nothing."""
        self.pixels = 0
        size = 0 if config.dtype == "float32" else np.iinfo(config.dtype).max + 1
        self._histogram = np.zeros((config.channels, size), np.int64)
        self._drawn: list[np.ndarray] = []

    def look(self, image: Real[np.ndarray, "H W c"], limit: int, rng: np.random.Generator) -> None:
        """Adds an image; of floating-point values, `limit` pixels."""
        flat = image.reshape(-1, image.shape[-1])
        if self._histogram.size:
            for counts, channel in zip(self._histogram, flat.T, strict=True):
                counts += np.bincount(channel, minlength=len(counts))
        else:
            if len(flat) > limit:
                flat = flat[rng.choice(len(flat), limit, replace=False)]
            self._drawn.append(np.ascontiguousarray(flat))
        self.pixels += len(flat)

    def add(self, other: "Tally") -> None:
        """Adds what another one has seen; the order does not matter."""
        self.pixels += other.pixels
        self._histogram += other._histogram
        self._drawn += other._drawn

    def limits(self, percentiles: tuple[float, ...]) -> list[tuple[float, float]]:
        """Returns two percentiles of each channel; ValueError if they are the same."""
        limits = []
        for channel, (values, counts) in enumerate(self._values()):
            total = np.cumsum(counts)
            # Products with the shares are not exact.
            places = np.searchsorted(total, np.array(percentiles) / 100 * total[-1] * (1 - 1e-12))
            # float32 with its own few digits.
            low, high = (float(str(values[place])) for place in places)
            if low >= high:
                what = f"the percentiles {percentiles[0]:g} and {percentiles[1]:g} of channel {channel}"
                remedy = "drop this band from the images" if len(values) == 1 else "choose wider --percentiles"
                raise ValueError(f"{what}, counted from 0, are both {low:g}: {remedy}, or give --range=LOW,HIGH")
            limits.append((low, high))
        return limits

    def moments(self, limits: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
        """Returns mean and standard deviation of each channel, from 0 to 1 between its limits and clipped there.

        Raises:
            ValueError: if all values are the same then.
        """
        means, deviations = [], []
        for channel, ((values, counts), (low, high)) in enumerate(zip(self._values(), limits, strict=True)):
            unit = np.clip((values.astype(np.float64) - low) / (high - low), 0, 1)
            if unit.min() == unit.max():
                raise ValueError(
                    f"channel {channel}, counted from 0, is {unit[0]:g} in all images once {low:g} to {high:g} has "
                    "become 0 to 1: drop this band from the images, or give another --range"
                )
            means.append(float(np.average(unit, weights=counts)))
            deviations.append(float(np.sqrt(np.average((unit - means[-1]) ** 2, weights=counts))))
        return means, deviations

    def _values(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields the different values of each channel in order, and how often each occurs."""
        if self._histogram.size:
            for counts in self._histogram:
                (values,) = np.nonzero(counts)
                yield values, counts[values]
        else:
            for channel in np.concatenate(self._drawn).T:
                yield np.unique(channel, return_counts=True)
