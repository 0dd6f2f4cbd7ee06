"""The content of results.json: a score together with every setting that moves it."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from croc_jax.atomic_write import atomic_write
from croc_jax.evaluation.backbones import FrozenBackbone
from croc_jax.evaluation.registry import Protocol, Result
from croc_jax.pixel_format import PixelFormat

RESULTS = "results.json"


def make_results(
    protocol: Protocol, config: Mapping[str, Any], result: Result, *, backbone: FrozenBackbone, checkpoint: str
) -> dict[str, Any]:
    """Returns the content of results.json; `checkpoint` is named as the caller did."""
    settings = protocol.fingerprint(config, result) | {
        "backbone": describe_backbone(backbone) | _describe_pixels(backbone.module.pixels),
        "which": backbone.which,
    }
    return {
        "protocol": protocol.name,
        "dataset": str(result.root),
        "checkpoint": checkpoint,
        "step": backbone.step,
        **result.scores,
        "seconds": result.seconds | {"total": sum(result.seconds.values())},
        "fingerprint": settings | {"digest": digest(settings)},
    }


def describe_backbone(backbone: FrozenBackbone) -> dict[str, Any]:
    """Returns what of a network moves its features, but for the weights."""
    module, settings = backbone.module, dataclasses.asdict(backbone.recipe.backbone)
    # The grid states it, as in results of earlier versions.
    del settings["position_size"]
    computed = {"compute_dtype": str(module.dtype), "pretrained_grid": module.grid_size}
    return settings | computed | {"prefix": backbone.prefix}


def _describe_pixels(pixels: PixelFormat) -> dict[str, Any]:
    """Returns what of a format moves scores; nothing for 8-bit RGB, which results of earlier versions do not state."""
    described = {"channels": pixels.channels, "dtype": pixels.dtype, "range": list(pixels.range)}
    return {} if pixels.is_rgb8 else {"pixels": described}


def describe_counts(results: Mapping[str, Any]) -> str:
    """Returns what a score is of, such as "5 images, 3 classes, 3 classes in labels": the keys that begin with num_."""
    counts = {name.removeprefix("num_"): value for name, value in results.items() if name.startswith("num_")}
    return ", ".join(f"{value:,} {name.replace('_', ' ')}" for name, value in counts.items() if value)


def digest(settings: Mapping[str, Any]) -> str:
    """Returns 12 hexadecimal digits that differ wherever settings do."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def write_results(results: Mapping[str, Any], output: Path) -> Path:
    """Writes OUTPUT/results.json and returns its path."""
    file = output / RESULTS
    atomic_write(file, f"{json.dumps(results, indent=2)}\n".encode())
    return file
