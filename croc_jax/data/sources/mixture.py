"""Several sources as one: one after another, or in given shares."""

import itertools
from collections.abc import Sequence
from fractions import Fraction
from math import ceil, floor, isfinite

from croc_jax.data.sources.base import ImageSource, SourceError, locate


class JoinedSource:
    """The images of several sources, one source after another."""

    def __init__(self, sources: Sequence[ImageSource]) -> None:
        """Joins one or more sources."""
        self._sources = tuple(sources)
        self._ends = list(itertools.accumulate(map(len, self._sources)))

    def __len__(self) -> int:
        """Returns the number of images in all of them."""
        return self._ends[-1]

    def __getitem__(self, index: int) -> bytes:
        """Returns an encoded image; raises OSError if it cannot be read."""
        part, position = locate(self._ends, index)
        return self._sources[part][position]

    def name(self, index: int) -> str:
        """Returns the name that the image has in its source."""
        part, position = locate(self._ends, index)
        return self._sources[part].name(position)


class MixtureSource:
    """The images of several sources in given shares; those of a source repeat to fill its share.

    With weights w that sum to one, L is the least number for which each share, ceil(w L) images,
    covers its source once. An epoch is all shares, one after another (which makes L images, or
    fewer than one more a source, as shares are rounded up); image j of a share is image j modulo
    the length of its source. So each image occurs, and within a share one at most once more
    often than another.
    """

    def __init__(self, sources: Sequence[ImageSource], weights: Sequence[float]) -> None:
        """Computes the shares.

        Args:
            sources: one or more.
            weights: of the sources: positive, of any sum.

        Raises:
            SourceError: for weights that are not positive, or not one a source.
        """
        shares = mixture_shares([len(source) for source in sources], weights)
        self._sources = tuple(sources)
        self._ends = list(itertools.accumulate(shares))

    def __len__(self) -> int:
        """Returns the number of images of an epoch, repeated ones included."""
        return self._ends[-1]

    def __getitem__(self, index: int) -> bytes:
        """Returns an encoded image; raises OSError if it cannot be read."""
        source, position = self._locate(index)
        return source[position]

    def name(self, index: int) -> str:
        """Returns the name that the image has in its source."""
        source, position = self._locate(index)
        return source.name(position)

    def _locate(self, index: int) -> tuple[ImageSource, int]:
        part, position = locate(self._ends, index)
        source = self._sources[part]
        return source, position % len(source)


def mixture_shares(lengths: Sequence[int], weights: Sequence[float]) -> list[int]:
    """Returns how many images each source of a mixture contributes to an epoch.

    Args:
        lengths: of the sources.
        weights: of the sources: positive, of any sum.

    Raises:
        SourceError: for weights that are not positive, or not one a source.
    """
    if len(weights) != len(lengths):
        raise SourceError(f"{len(weights)} weights for {len(lengths)} sources: give one a source, or none")
    if any(not isfinite(weight) or weight <= 0 for weight in weights):
        raise SourceError(f"weights={tuple(weights)}: must be positive; leave a source out to give it no weight")
    # As written in decimals, so that 0.1 is a tenth and shares do not hang on rounding.
    exact = [Fraction(str(weight)) for weight in weights]
    exact = [weight / sum(exact) for weight in exact]
    # ceil(w L) >= n means w L > n - 1.
    total = max(floor((n - 1) / weight) + 1 for n, weight in zip(lengths, exact, strict=True))
    return [ceil(weight * total) for weight in exact]
