"""Scores of the teacher's backbone during a run, by any protocol of configs/eval."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from croc_jax.evaluation.features import FrozenFeatures, MemoryBudget, Params
from croc_jax.evaluation.registry import get_protocol
from croc_jax.models import Backbone


def make_online_evaluator(
    config: Mapping[str, Any], *, backbone_module: Backbone, folder: Path | None = None
) -> Callable[[int, Params], dict[str, float]]:
    """Returns a function of (step, parameters of the teacher's backbone) to scores such as {"knn_top1": 61.3}.

    The data set is opened here, so that a wrong path ends a run before its first step. Each call encodes the images
    with the given parameters, which may be sharded over the devices of this process; nothing compiles again after the
    first call, and nothing is written.

    Args:
        config: content of a file in configs/eval, with a data set.
        backbone_module: module of the teacher's backbone.
        folder: folder of temporary files for features beyond `config["budget"]`; by default the system's.

    Raises:
        ValueError: for settings that cannot work, data that cannot be used, patches that do not tile the images, or
            if several processes form the run.
    """
    if jax.process_count() > 1:
        raise ValueError(
            f"evaluation during training runs in one process, and this run has {jax.process_count()}: "
            "score its checkpoints with launch/evaluate.py"
        )
    protocol = get_protocol(config["protocol"])
    score, budget = protocol.prepare(config), MemoryBudget(**config.get("budget", {}))
    settings = config[protocol.name]
    if (size := settings.get("image_size")) and not settings.get("whole_patches"):
        FrozenFeatures(backbone_module, None).grid(size if isinstance(size, tuple) else (size, size))

    def evaluate(step: int, params: Params) -> dict[str, float]:
        del step  # The same images and seeds at every step: only the weights differ.
        # Images come from the host, which a transfer guard around the loop would forbid.
        with jax.transfer_guard("allow"):
            result = score(FrozenFeatures(backbone_module, params, budget=budget, folder=folder), None)
        known = {name: result.scores.get(name) for name in protocol.score_labels}
        return {f"{protocol.name}_{name}": float(value) for name, value in known.items() if value is not None}

    return evaluate
