"""What all readers share: lists of names, files that must be there, and samples of a split."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from croc_jax.data.labeled.segmentation import LabeledDataError, LabeledPair, SegmentationSplit


def find_root(root: str | Path, *, marker: str, below: tuple[str, ...], remedy: str) -> Path:
    """Returns the folder that holds `marker`: the one given, or where the archive's own folders lead.

    Args:
        root: what the user named.
        marker: a folder that the data set always has.
        below: where else to look, relative to the root.
        remedy: where to get the data.

    Raises:
        LabeledDataError: if it is nowhere.
    """
    folders = [Path(root), *(Path(root) / part for part in below)]
    for folder in folders:
        if (folder / marker).is_dir():
            return folder
    raise LabeledDataError(f"no folder {folders[0] / marker}: {remedy}")


def check_split(split: str, known: Iterable[str], *, kind: str) -> None:
    """Raises LabeledDataError for a split that the data set does not have."""
    if split not in (names := tuple(known)):
        raise LabeledDataError(f"{kind} has no split {split!r}: choose one of {', '.join(names)}")


def names_in(folder: Path, *, suffix: str = "", remedy: str) -> list[str]:
    """Returns the sorted names of files in a folder, without their suffix.

    Raises:
        LabeledDataError: for a missing folder, or one without such files.
    """
    if not folder.is_dir():
        raise LabeledDataError(f"no folder {folder}: {remedy}")
    names = sorted(entry.name.removesuffix(suffix) for entry in folder.iterdir() if entry.name.endswith(suffix))
    if not names:
        raise LabeledDataError(f"no {suffix or 'files'} in {folder}: {remedy}")
    return names


def check_pairs(pairs: Iterable[LabeledPair], *, remedy: str) -> tuple[LabeledPair, ...]:
    """Returns the pairs, all of whose files are there; asks for each folder's contents once.

    Raises:
        LabeledDataError: for a missing folder or file.
    """
    pairs, contents = tuple(pairs), {}
    for pair in pairs:
        for what, file in zip(("image", "labels"), pair, strict=True):
            if file.parent not in contents:
                contents[file.parent] = set(names_in(file.parent, remedy=remedy))
            if file.name not in contents[file.parent]:
                raise LabeledDataError(f"no {what} {file}: {remedy}")
    return pairs


def draw_sample(split: SegmentationSplit, fraction: float, *, seed: int) -> SegmentationSplit:
    """Returns a share of a split's images, the same for the same seed, in their order.

    Args:
        split: to draw from; its new name tells share and seed.
        fraction: of the images, rounded to whole images but at least one; 1 leaves all of them.
        seed: of the draw.

    Raises:
        LabeledDataError: for a share that is not in (0, 1].
    """
    if not 0 < fraction <= 1:
        raise LabeledDataError(f"fraction={fraction}: must be above 0, and 1 at most")
    if fraction == 1:
        return split
    count = max(round(fraction * len(split)), 1)
    chosen = np.sort(np.random.default_rng(seed).choice(len(split), count, replace=False))
    name = f"{split.name}[{100 * fraction:g}%, seed {seed}]"
    return dataclasses.replace(split, name=name, pairs=tuple(split.pairs[index] for index in chosen))
