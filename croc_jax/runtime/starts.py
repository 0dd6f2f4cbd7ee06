"""What a workdir tells of the starts of its run: the images, and the versions and devices from which step on."""

import datetime
import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from croc_jax.atomic_write import atomic_write
from croc_jax.data.sources.identity import ImageSet

IMAGES_NAME, STARTS_NAME = "images.json", "starts.jsonl"
_PACKAGES = ("croc_jax", "jax", "jaxlib", "flax", "optax", "grain", "numpy", "pillow")


class RunImages(NamedTuple):
    """The images that a run draws from.

    Attributes:
        images: what identifies them.
        steps_per_epoch: updates an epoch, as at the start of the run.
    """

    images: ImageSet
    steps_per_epoch: int


def read_images(workdir: Path) -> RunImages | None:
    """Returns the images of the run in a workdir, or None if it was made before they were noted."""
    file = workdir / IMAGES_NAME
    if not file.exists():
        return None
    try:
        noted = json.loads(file.read_text(encoding="utf-8"))
        return RunImages(ImageSet(noted["count"], noted["digest"], noted["entries"]), int(noted["steps_per_epoch"]))
    except (ValueError, KeyError, TypeError) as error:
        remedy = "restore it, or remove it to resume without a comparison of the images"
        raise ValueError(f"{file} is damaged ({error}): {remedy}") from error


def write_images(workdir: Path, run: RunImages) -> None:
    """Notes the images of a run."""
    noted = run.images.brief | {"steps_per_epoch": run.steps_per_epoch, "entries": run.images.entries}
    atomic_write(workdir / IMAGES_NAME, json.dumps(noted).encode())


def environment() -> dict[str, Any]:
    """Returns the versions of the libraries, and the devices, that all processes work with."""
    kinds = sorted({device.device_kind for device in jax.devices()})
    return {
        "versions": {package: _version(package) for package in _PACKAGES},
        "devices": f"{jax.device_count()} {', '.join(kinds)}",
        "processes": jax.process_count(),
    }


def append_start(workdir: Path, step: int, notes: Mapping[str, Any]) -> None:
    """Appends a line on a start that continues after a step; a new run begins the file anew."""
    time = datetime.datetime.now(tz=datetime.UTC).isoformat(timespec="seconds")
    with (workdir / STARTS_NAME).open("a" if step else "w", encoding="utf-8") as file:
        file.write(json.dumps({"time": time, "step": step, **notes}) + "\n")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
