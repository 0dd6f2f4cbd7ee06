"""Videos with object masks: DAVIS as it is distributed, or plain folders."""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import logging
from PIL import Image

from croc_jax.data.labeled.label_files import IGNORED, Ids, image_header, read_ids, read_image
from croc_jax.data.labeled.turned import turn_along
from croc_jax.data.orientation import UPRIGHT
from croc_jax.data.sources.base import is_image

DAVIS_URL = "https://davischallenge.org/davis2017/code.html (DAVIS-2017-trainval-480p.zip)"


class Video(NamedTuple):
    """One sequence.

    Attributes:
        name: name of its folder.
        frames: image files in order.
        masks: files of object ids, by the number of the frame; 0 is always there.
    """

    name: str
    frames: tuple[Path, ...]
    masks: dict[int, Path]


def open_videos(root: str | Path, split: str = "val") -> list[Video]:
    """Lists the sequences of DAVIS-2017, or of a folder of images/SEQUENCE/ and masks/SEQUENCE/.

    Args:
        root: holds JPEGImages/480p, Annotations/480p and ImageSets/2017/SPLIT.txt; or images and
            masks, of which all sequences are taken, with masks of some frames.
        split: split of DAVIS.

    Raises:
        ValueError: for a missing file or folder, with where to get it, or a sequence without a
            mask of its first frame.
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
    videos = [_open_video(frames / name, masks / name) for name in names]
    turned = [video.name for video in videos if image_header(video.frames[0]).orientation != UPRIGHT]
    if turned:
        logging.warning(
            "EXIF orientation turns the frames of %d of %d videos, such as %s; masks that only fit the frame as it is "
            "stored are turned along",
            len(turned), len(videos), turned[0],
        )  # fmt: skip
    return videos


def load_frames(video: Video) -> list[Image.Image]:
    """Returns all frames of a video in RGB, upright by their EXIF orientation.

    Raises:
        ValueError: for a frame that cannot be read, or of another size than the first.
    """
    frames = [Image.fromarray(read_image(file)) for file in video.frames]
    for file, frame in zip(video.frames, frames, strict=True):
        if frame.size != (first := frames[0]).size:
            raise ValueError(
                f"{file} has {frame.height} x {frame.width} pixels, but {video.frames[0]} has {first.height} x "
                f"{first.width}: frames of a video need one size"
            )
    return frames


def turn_with_frame(ids: Ids, frame: Path) -> Ids:
    """Returns a mask that only fits its frame as it is stored turned as the frame is, and others unchanged."""
    return turn_along(ids, image_header(frame))


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
    ids = np.unique(read_ids(found[0])).tolist()
    if set(ids) <= {0, IGNORED} and IGNORED in ids:
        raise ValueError(f"{found[0]} holds no object, only {IGNORED}, which is ignored: number objects from 1")
    return Video(frames.name, files, found)


def _frame_order(file: Path) -> list[tuple[int, str]]:
    """Orders numbers in file names by value, so that 10 follows 9 without leading zeros, too."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", file.stem)]
