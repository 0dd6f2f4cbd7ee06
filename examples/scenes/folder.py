"""Writes scenes as a segmentation folder, once."""

import json
import shutil
from pathlib import Path

from PIL import Image
from rich.progress import Progress

from scenes.scene import CLASS_NAMES, SPLITS, make_scene

MANIFEST = "scenes.json"
# Raised whenever scenes change, so that older ones are made again.
VERSION = 1


def write_scenes(
    root: str | Path,
    *,
    num_train: int = 400,
    num_val: int = 100,
    seed: int = 0,
    size: tuple[int, int] = (144, 192),
    show_progress: bool = True,
) -> Path:
    """Writes a segmentation folder of scenes unless it exists already; returns the folder.

    An interrupted call starts over; another number, seed or size replaces the scenes.

    Args:
        root: the folder; holds images/, labels/, classes.txt and the manifest.
        num_train: scenes of the split "train".
        num_val: scenes of the split "val", none of which is in "train".
        seed: seed of all scenes.
        size: height and width in pixels.
        show_progress: draw a progress bar.

    Raises:
        ValueError: for sizes or numbers that cannot work, or a folder that holds other images.
    """
    root = Path(root)
    if min(num_train, num_val) < 1 or min(size) < 32:
        raise ValueError(f"num_train={num_train}, num_val={num_val}, size={size}: at least 1 scene and 32 pixels")
    settings = {"version": VERSION, "num_train": num_train, "num_val": num_val, "seed": seed, "size": list(size)}
    manifest = root / MANIFEST
    if manifest.is_file() and manifest.read_text() == json.dumps({**settings, "complete": True}):
        return root
    _clear(root)
    manifest.write_text(json.dumps({**settings, "complete": False}))
    (root / "classes.txt").write_text("\n".join(CLASS_NAMES) + "\n")
    with Progress(disable=not show_progress, transient=True) as progress:
        for split, count in zip(SPLITS, (num_train, num_val), strict=True):
            for index in progress.track(range(count), description=f"drawing {split} scenes"):
                scene = make_scene(seed, split, index, size=size)
                Image.fromarray(scene.image).save(root / "images" / split / f"{index:05d}.jpg", quality=92)
                Image.fromarray(scene.labels).save(root / "labels" / split / f"{index:05d}.png")
    manifest.write_text(json.dumps({**settings, "complete": True}))
    return root


def _clear(root: Path) -> None:
    """Removes earlier scenes, but nothing that this module did not write."""
    written = (root / MANIFEST).is_file()
    for name in ("images", "labels"):
        if (root / name).exists() and not written:
            raise ValueError(f"{root} holds {name}/ but no {MANIFEST}: choose a folder for the scenes alone")
        for split in SPLITS:
            shutil.rmtree(root / name / split, ignore_errors=True)
            (root / name / split).mkdir(parents=True)
