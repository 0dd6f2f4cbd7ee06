"""What results.json holds: a score together with every setting that moves it."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from croc_jax.evaluation.backbones import FrozenBackbone

RESULTS = "results.json"


class Outcome(NamedTuple):
    """What one protocol found.

    Attributes:
        protocol: its name.
        scores: under their usual names.
        settings: what moves them, apart from the backbone.
        root: of the data set.
        seconds: of each phase.
    """

    protocol: str
    scores: dict[str, Any]
    settings: dict[str, Any]
    root: Path
    seconds: dict[str, float]


def make_results(outcome: Outcome, *, backbone: FrozenBackbone, checkpoint: str) -> dict[str, Any]:
    """Returns what results.json holds.

    Args:
        outcome: of the evaluation.
        backbone: what was evaluated.
        checkpoint: as the caller named it.
    """
    module = {"compute_dtype": str(backbone.module.dtype), "pretrained_grid": backbone.module.grid_size}
    settings = outcome.settings | {
        "backbone": dataclasses.asdict(backbone.recipe.backbone) | module,
        "which": backbone.which,
    }
    return {
        "protocol": outcome.protocol,
        "dataset": str(outcome.root),
        "checkpoint": checkpoint,
        "step": backbone.step,
        **outcome.scores,
        "seconds": outcome.seconds | {"total": sum(outcome.seconds.values())},
        "fingerprint": settings | {"digest": digest(settings)},
    }


def digest(settings: dict[str, Any]) -> str:
    """Returns 12 hexadecimal digits that differ wherever settings do."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def write_results(results: dict[str, Any], output: Path) -> Path:
    """Writes OUTPUT/results.json and returns its path."""
    output.mkdir(parents=True, exist_ok=True)
    file = output / RESULTS
    file.write_text(json.dumps(results, indent=2) + "\n")
    return file
