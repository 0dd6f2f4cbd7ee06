"""Several sources as one: one after another, or in given shares."""

import bisect
import itertools
import math
from collections.abc import Iterator, Sequence
from fractions import Fraction

from croc_jax.data.sources.base import ImageSource


class CombinedSource:
    """Each source contributes a number of images; those of a source repeat in order to fill its share.

    Without weights, sources follow one another and each image occurs once. With weights w that sum to
    one, L is the least number for which each share, ceil(w L) images, covers its source once: each image
    occurs, and within a share one at most once more often than another.

    grain's `MapDataset.mix` ends with the first source that runs out, and knows no names of images.

    Attributes:
        sources: the sources.
    """

    def __init__(self, sources: Sequence[ImageSource], weights: Sequence[float] = ()) -> None:
        """Computes the shares.

        Args:
            sources: one or more.
            weights: positive, one a source, of any sum; empty to take each image once.

        Raises:
            ValueError: for weights that are not positive, or not one a source.
        """
        lengths = list(map(len, sources))
        self.sources = tuple(sources)
        self._ends = list(itertools.accumulate(mixture_shares(lengths, weights) if weights else lengths))

    def __len__(self) -> int:
        """Returns the number of images of an epoch, repeated ones included."""
        return self._ends[-1]

    def __getitem__(self, index: int) -> bytes:
        """Returns an encoded image; raises OSError if it cannot be read."""
        source, position = self._find(index)
        return source[position]

    def name(self, index: int) -> str:
        """Returns the name that the image has in its source."""
        source, position = self._find(index)
        return source.name(position)

    def entries(self) -> Iterator[tuple[str, int]]:
        """Yields the entries of each source, in front of them its index if there are several."""
        for index, source in enumerate(self.sources):
            prefix = f"{index}/" if len(self.sources) > 1 else ""
            yield from ((prefix + name, size) for name, size in source.entries())

    def _find(self, index: int) -> tuple[ImageSource, int]:
        part = bisect.bisect_right(self._ends, index)
        source = self.sources[part]
        return source, (index - (self._ends[part - 1] if part else 0)) % len(source)


def mixture_shares(lengths: Sequence[int], weights: Sequence[float]) -> list[int]:
    """Returns how many images each source of a mixture contributes to an epoch; see `CombinedSource`.

    Raises:
        ValueError: for weights that are not positive, or not one a source.
    """
    if len(weights) != len(lengths):
        raise ValueError(f"{len(weights)} weights for {len(lengths)} sources: give one a source, or none")
    if not all(0 < weight < math.inf for weight in weights):
        raise ValueError(f"weights={tuple(weights)}: must be positive; leave a source out to give it no weight")
    # As written in decimals, so that 0.1 is a tenth and shares do not depend on rounding.
    exact = [Fraction(str(weight)) for weight in weights]
    exact = [weight / sum(exact) for weight in exact]
    # ceil(w L) >= n means w L > n - 1.
    total = max(math.floor((n - 1) / weight) + 1 for n, weight in zip(lengths, exact, strict=True))
    return [math.ceil(weight * total) for weight in exact]
