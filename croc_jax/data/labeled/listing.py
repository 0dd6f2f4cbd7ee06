"""Lists of names, files that must exist, and samples of a split, for the readers of all data sets."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from croc_jax.data.labeled.segmentation import LabeledPair, SegmentationSplit


def find_root(root: str | Path, *, marker: str, below: tuple[str, ...], remedy: str) -> Path:
    """Returns the folder that holds `marker`: the given one, or one of the archive's own folders in it.

    Args:
        root: the folder that the user named.
        marker: a folder that the data set always has.
        below: other places of the data set, relative to the root.
        remedy: where to get the data.

    Raises:
        ValueError: if no folder holds the marker.
    """
    folders = [Path(root), *(Path(root) / part for part in below)]
    for folder in folders:
        if (folder / marker).is_dir():
            return folder
    raise ValueError(f"no folder {folders[0] / marker}: {remedy}")


def check_split(split: str, known: Iterable[str], *, kind: str) -> None:
    """Raises ValueError for a split that the data set does not have."""
    if split not in (names := tuple(known)):
        raise ValueError(f"{kind} has no split {split!r}: choose one of {', '.join(names)}")


def names_in(folder: Path, *, suffix: str = "", remedy: str) -> list[str]:
    """Returns the sorted names of the files in a folder that end in a suffix, without it.

    Raises:
        ValueError: for a missing folder, or one without such files.
    """
    if not folder.is_dir():
        raise ValueError(f"no folder {folder}: {remedy}")
    names = sorted(entry.name.removesuffix(suffix) for entry in folder.iterdir() if entry.name.endswith(suffix))
    if not names:
        raise ValueError(f"no {suffix or 'files'} in {folder}: {remedy}")
    return names


def read_names(file: Path, *, remedy: str) -> list[str]:
    """Returns the first word of each line of a list; raises ValueError if there are none."""
    if not file.is_file():
        raise ValueError(f"no list {file}: {remedy}")
    names = [line.split()[0] for line in file.read_text().splitlines() if line.strip()]
    if not names:
        raise ValueError(f"{file} names no images: write one name a line")
    return names


def check_pairs(pairs: Iterable[LabeledPair], *, remedy: str) -> tuple[LabeledPair, ...]:
    """Returns the pairs if all their files exist; lists each folder once.

    Raises:
        ValueError: for a missing folder or file.
    """
    pairs, contents = tuple(pairs), {}
    for pair in pairs:
        for what, file in zip(("image", "labels"), pair, strict=True):
            if file.parent not in contents:
                contents[file.parent] = set(names_in(file.parent, remedy=remedy))
            if file.name not in contents[file.parent]:
                raise ValueError(f"no {what} {file}: {remedy}")
    return pairs


def draw_sample(split: SegmentationSplit, fraction: float, *, seed: int) -> SegmentationSplit:
    """Returns a share of a split's images, the same for the same seed, in their order.

    Args:
        split: the split to draw from; share and seed are added to its name.
        fraction: share of the images, rounded to whole images but at least one; 1 for all of them.
        seed: seed of the draw.

    Raises:
        ValueError: for a share that is not in (0, 1].
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction={fraction}: must be above 0, and 1 at most")
    if fraction == 1:
        return split
    count = max(round(fraction * len(split)), 1)
    chosen = np.sort(np.random.default_rng(seed).choice(len(split), count, replace=False))
    name = f"{split.name}[{100 * fraction:g}%, seed {seed}]"
    return dataclasses.replace(split, name=name, pairs=tuple(split.pairs[index] for index in chosen))
