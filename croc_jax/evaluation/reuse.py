"""Whether an evaluation has been made already: of the same weights, with the same settings, on the same images."""

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from croc_jax.atomic_write import atomic_write
from croc_jax.data.sources import FolderSource
from croc_jax.data.sources.identity import identify
from croc_jax.evaluation.results import RESULTS

REQUEST_NAME = "request.json"


def make_request(arguments: Sequence[str], *, config: Path, step: int, data: str | Path) -> dict[str, Any]:
    """Returns what the score of an evaluation depends on.

    Args:
        arguments: command line of the evaluation.
        config: file with the settings of the network; may not exist.
        step: step of its weights.
        data: folder of the labeled images.
    """
    settings = config.read_text(encoding="utf-8") if config.is_file() else ""
    return {"arguments": list(arguments), "config": settings, "step": step, "images": _brief(str(data))}


def is_done(output: Path, request: dict[str, Any]) -> bool:
    """Returns whether a folder has results of this request, perhaps of several protocols below it."""
    file = output / REQUEST_NAME
    if not (file.is_file() and any(output.rglob(RESULTS))):
        return False
    try:
        return json.loads(file.read_text(encoding="utf-8")) == request
    except ValueError:
        return False


def mark_done(output: Path, request: dict[str, Any]) -> None:
    """Notes beside the results what they were asked for."""
    atomic_write(output / REQUEST_NAME, json.dumps(request, indent=1).encode())


# Several evaluations are of the same images.
@functools.cache
def _brief(data: str) -> dict[str, Any] | None:
    """Returns number and digest of the images and labels in a folder, or None if there are none."""
    try:
        return identify(FolderSource(data)).brief
    except ValueError:
        return None
