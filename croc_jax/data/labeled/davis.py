"""Videos with object masks: DAVIS as it is distributed, or plain folders."""

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Real

from croc_jax.data.labeled.label_files import Ids, image_header, read_image
from croc_jax.data.labeled.object_masks import find_objects
from croc_jax.data.labeled.turned import turn_along
from croc_jax.data.orientation import UPRIGHT
from croc_jax.data.sources.base import SUFFIXES, is_image, is_label, report_left_out, tell
from croc_jax.data.sources.entries import list_entries
from croc_jax.data.text_lists import check_unique, read_lines
from croc_jax.pixel_format import RGB8, PixelFormat

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
        ValueError: for a missing file or folder, with where to get it, two files of the same frame, or a
            sequence without a mask of its first frame or without objects in it (see `find_objects`).
    """
    root = Path(root)
    if (root / "images").is_dir() and (root / "masks").is_dir():
        frames, masks = root / "images", root / "masks"
        names, above = sorted(list_entries(frames).folders), [frames, masks]
    else:
        listed = root / "ImageSets" / "2017" / f"{split}.txt"
        if not listed.is_file():
            raise ValueError(
                f"no file {listed}, nor folders images and masks in {root}: unpack DAVIS-2017 there, from {DAVIS_URL}"
            )
        frames, masks = root / "JPEGImages" / "480p", root / "Annotations" / "480p"
        lines = read_lines(listed, what="list of sequences")
        check_unique(listed, lines)
        names, above = [line.text for line in lines], []
        if missing := [line for line in lines if not (frames / line.text).is_dir()]:
            raise missing[0].error(listed, f"no folder {frames / missing[0].text}: unpack all of {DAVIS_URL}")
    if not names:
        raise ValueError(f"no sequences in {root}")
    videos = [_open_video(frames / name, masks / name) for name in names]
    turned = [video.name for video in videos if _is_turned(video.frames[0])]
    if turned:
        tell(
            f"EXIF orientation turns the frames of {len(turned)} of {len(videos)} videos, such as {turned[0]}; masks "
            "that only fit the frame as it is stored are turned along"
        )
    _report(root, [*above, *(folder / name for folder in (frames, masks) for name in names)], videos)
    return videos


def load_frames(video: Video, pixels: PixelFormat = RGB8) -> list[Real[np.ndarray, "H W c"]]:
    """Returns all frames of a video; 8-bit RGB upright by its EXIF orientation.

    Args:
        video: the sequence.
        pixels: format of its frames.

    Raises:
        ValueError: for a frame that cannot be read, or of another size than the first.
    """
    frames = [read_image(file, pixels) for file in video.frames]
    height, width, _ = frames[0].shape
    for file, frame in zip(video.frames, frames, strict=True):
        if frame.shape[:2] != (height, width):
            raise ValueError(
                f"{file} has {frame.shape[0]} x {frame.shape[1]} pixels, but {video.frames[0]} has {height} x {width}: "
                "frames of a video need one size"
            )
    return frames


def turn_with_frame(ids: Ids, frame: Path, pixels: PixelFormat = RGB8) -> Ids:
    """Returns a mask that only fits its frame as it is stored turned as the frame is, and others unchanged."""
    return turn_along(ids, image_header(frame, pixels))


def _is_turned(frame: Path) -> bool:
    try:
        return image_header(frame).orientation != UPRIGHT
    except ValueError:
        # Of another format than 8-bit RGB, or damaged: it is told when it is read.
        return False


def _open_video(frames: Path, masks: Path) -> Video:
    files = _list_sequence(frames, is_image)
    if not files:
        raise ValueError(f"no frames in {frames}: put {', '.join(SUFFIXES)} files there, or leave the sequence out")
    numbers = {file.stem: number for number, file in enumerate(files)}
    found = {}
    for mask in _list_sequence(masks, is_label):
        if mask.stem not in numbers:
            raise ValueError(f"{mask} has no frame in {frames}: remove it, or add {mask.stem}.jpg")
        found[numbers[mask.stem]] = mask
    if 0 not in found:
        raise ValueError(
            f"no mask of the first frame, {files[0]}, in {masks}: add {files[0].stem}.png, or leave the sequence out"
        )
    return Video(frames.name, files, found, tuple(find_objects(found[0])))


def _list_sequence(folder: Path, is_kind: Callable[[str], bool]) -> tuple[Path, ...]:
    """Returns frames or masks in order; raises ValueError if two have the same name or number."""
    if not folder.is_dir():
        raise ValueError(f"no folder {folder}: a sequence needs frames and masks; DAVIS-2017 comes from {DAVIS_URL}")
    names = sorted(filter(is_kind, list_entries(folder).files), key=_frame_order)
    for first, second in itertools.pairwise(names):
        if _frame_order(first) == _frame_order(second):
            raise ValueError(f"{folder / first} and {second} are the same frame: remove one")
    return tuple(folder / name for name in names)


def _report(root: Path, folders: Sequence[Path], videos: Iterable[Video]) -> None:
    """Logs what the folders hold besides sequences, frames and masks."""
    known = {*folders}.union(*((*video.frames, *video.masks.values()) for video in videos))
    left_out, others = list[str](), Counter[str]()
    for folder in folders:
        found = list_entries(folder)
        left_out += [name for name in found.files if folder / name not in known]
        left_out += found.sidecars
        others.update(found.others + Counter(folders=sum(folder / name not in known for name in found.folders)))
    report_left_out(root, left_out, others=others)


def _frame_order(name: str) -> list[tuple[int, str]]:
    """Orders numbers in file names by value, so that 10 follows 9 without leading zeros, too."""
    # Split by a group, every second part is a number.
    parts = re.split(r"(\d+)", name.rpartition(".")[0].lower())
    return [(int(part), "") if i % 2 else (0, part) for i, part in enumerate(parts)]
