"""Videos with object masks: DAVIS as its owners distribute it, or plain folders."""

from pathlib import Path
from typing import NamedTuple

from croc_jax.data.labeled.label_files import LabeledDataError
from croc_jax.data.sources import SUFFIXES

DAVIS_URL = "https://davischallenge.org/davis2017/code.html (DAVIS-2017-trainval-480p.zip)"


class Video(NamedTuple):
    """One sequence.

    Attributes:
        name: of its folder.
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
        split: of DAVIS.

    Raises:
        LabeledDataError: for a missing file or folder, with where to get it, or a sequence
            without a mask of its first frame.
    """
    root = Path(root)
    if (root / "images").is_dir() and (root / "masks").is_dir():
        names = sorted(folder.name for folder in (root / "images").iterdir() if folder.is_dir())
        videos = [_open_video(root / "images" / name, root / "masks" / name) for name in names]
    else:
        listed = root / "ImageSets" / "2017" / f"{split}.txt"
        if not listed.is_file():
            raise LabeledDataError(
                f"no file {listed}, nor folders images and masks in {root}: unpack DAVIS-2017 there, from {DAVIS_URL}"
            )
        frames, masks = root / "JPEGImages" / "480p", root / "Annotations" / "480p"
        videos = [_open_video(frames / name, masks / name) for name in listed.read_text().split()]
    if not videos:
        raise LabeledDataError(f"no sequences in {root}")
    return videos


def _open_video(frames: Path, masks: Path) -> Video:
    for folder in (frames, masks):
        if not folder.is_dir():
            raise LabeledDataError(f"no folder {folder}: unpack the whole of DAVIS-2017, from {DAVIS_URL}")
    files = tuple(sorted(file for file in frames.iterdir() if file.suffix.lower() in SUFFIXES))
    numbers = {file.stem: number for number, file in enumerate(files)}
    found = {}
    for mask in sorted(masks.glob("*.png")):
        if mask.stem not in numbers:
            raise LabeledDataError(f"{mask} has no frame in {frames}: remove it, or add {mask.stem}.jpg")
        found[numbers[mask.stem]] = mask
    if 0 not in found:
        raise LabeledDataError(f"no mask of the first frame of {frames} in {masks}: add it, or leave the sequence out")
    return Video(frames.name, files, found)
