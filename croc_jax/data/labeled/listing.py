"""Lists of names, files that must exist, and samples of a split, for the readers of all data sets."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from croc_jax.data.labeled.segmentation import LabeledPair, SegmentationSplit
from croc_jax.data.sources.base import report_left_out
from croc_jax.data.sources.entries import Entries, list_entries
from croc_jax.data.text_lists import check_unique, read_lines


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


def names_in(folder: Path, *, suffix: str, remedy: str) -> list[str]:
    """Returns the sorted names of the files in a folder that end in a suffix, without it; reports the others.

    Raises:
        ValueError: for a missing folder, or one without such files.
    """
    found = _entries(folder, remedy)
    names = sorted(name for name in found.files if name.endswith(suffix))
    if not names:
        raise ValueError(f"no {suffix} in {folder}: {remedy}")
    report_left_out(folder, sorted({*found.files} - {*names}) + found.sidecars, others=found.others, taken=len(names))
    return [name.removesuffix(suffix) for name in names]


def folders_in(folder: Path, *, remedy: str) -> list[str]:
    """Returns the sorted names of the folders in a folder; raises ValueError if it is missing, or has none."""
    found = _entries(folder, remedy)
    if not found.folders:
        raise ValueError(f"no folders in {folder}: {remedy}")
    report_left_out(folder, found.files + found.sidecars, others=found.others)
    return sorted(found.folders)


def _entries(folder: Path, remedy: str) -> Entries:
    if not folder.is_dir():
        raise ValueError(f"no folder {folder}: {remedy}")
    return list_entries(folder)


def read_names(file: Path, *, remedy: str) -> list[str]:
    """Returns the first word of each line of a list.

    Raises:
        ValueError: for a missing or unreadable list, one without names, or at a line that repeats a name.
    """
    if not file.exists():
        raise ValueError(f"no list {file}: {remedy}")
    lines = [line._replace(text=line.text.split()[0]) for line in read_lines(file, what="list of images")]
    if not lines:
        raise ValueError(f"{file} names no images: write one name a line")
    check_unique(file, lines)
    return [line.text for line in lines]


def check_pairs(pairs: Iterable[LabeledPair], *, remedy: str) -> tuple[LabeledPair, ...]:
    """Returns the pairs if all their files exist; lists each folder once.

    Raises:
        ValueError: for a missing folder or file.
    """
    pairs, contents = tuple(pairs), {}
    for pair in pairs:
        for what, file in zip(("image", "labels"), pair, strict=True):
            if file.parent not in contents:
                contents[file.parent] = set(_entries(file.parent, remedy).files)
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
