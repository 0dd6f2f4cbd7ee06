"""Videos with object masks: DAVIS as it is distributed, or plain folders."""

import re
from pathlib import Path
from typing import NamedTuple

from croc_jax.data.labeled.object_masks import find_objects
from croc_jax.data.sources.base import is_image

DAVIS_URL = "https://davischallenge.org/davis2017/code.html (DAVIS-2017-trainval-480p.zip)"


class Video(NamedTuple):
    """One sequence.

    Attributes:
        name: name of its folder.
        frames: image files in order.
        masks: files of object ids, by the number of the frame; 0 is always there.
        objects: ids of the objects, those of the first mask.
    """

    name: str
    frames: tuple[Path, ...]
    masks: dict[int, Path]
    objects: tuple[int, ...]


def open_videos(root: str | Path, split: str = "val") -> list[Video]:
    """Lists the sequences of DAVIS-2017, or of a folder of images/SEQUENCE/ and masks/SEQUENCE/.

    Args:
        root: holds JPEGImages/480p, Annotations/480p and ImageSets/2017/SPLIT.txt; or images and
            masks, of which all sequences are taken, with masks of some frames.
        split: split of DAVIS.

    Raises:
        ValueError: for a missing file or folder, with where to get it, or a sequence without a
            mask of its first frame, or without objects in it (see `find_objects`).
    """
    root = Path(root)
    if (root / "images").is_dir() and (root / "masks").is_dir():
        names = sorted(folder.name for folder in (root / "images").iterdir() if folder.is_dir())
        frames, masks = root / "images", root / "masks"
    else:
        listed = root / "ImageSets" / "2017" / f"{split}.txt"
        if not listed.is_file():
            raise ValueError(
                f"no file {listed}, nor folders images and masks in {root}: unpack DAVIS-2017 there, from {DAVIS_URL}"
            )
        frames, masks = root / "JPEGImages" / "480p", root / "Annotations" / "480p"
        names = listed.read_text().split()
    if not names:
        raise ValueError(f"no sequences in {root}")
    return [_open_video(frames / name, masks / name) for name in names]


def _open_video(frames: Path, masks: Path) -> Video:
    for folder in (frames, masks):
        if not folder.is_dir():
            raise ValueError(f"no folder {folder}: unpack the whole of DAVIS-2017, from {DAVIS_URL}")
    files = tuple(sorted((file for file in frames.iterdir() if is_image(file.name)), key=_frame_order))
    numbers = {file.stem: number for number, file in enumerate(files)}
    found = {}
    for mask in sorted(masks.glob("*.png"), key=_frame_order):
        if mask.stem not in numbers:
            raise ValueError(f"{mask} has no frame in {frames}: remove it, or add {mask.stem}.jpg")
        found[numbers[mask.stem]] = mask
    if 0 not in found:
        raise ValueError(f"no mask of the first frame of {frames} in {masks}: add it, or leave the sequence out")
    return Video(frames.name, files, found, tuple(find_objects(found[0])))


def _frame_order(file: Path) -> list[tuple[int, str]]:
    """Orders numbers in file names by value, so that 10 follows 9 without leading zeros, too."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", file.stem)]
