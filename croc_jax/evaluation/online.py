"""Scores of the teacher's backbone during a run: by protocols of configs/eval, and without labels."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, cast

import jax
from jax.sharding import NamedSharding, PartitionSpec
from rich.progress import Progress

from croc_jax.data.config import DataConfig
from croc_jax.data.sources.base import ImageSource
from croc_jax.evaluation.features import FrozenFeatures, MemoryBudget, Params
from croc_jax.evaluation.registry import get_protocol
from croc_jax.evaluation.unlabeled import SCORE_LABELS, load_crops, make_unlabeled_scores
from croc_jax.float32 import in_float32
from croc_jax.models import Backbone

Bars = Callable[[], AbstractContextManager[Progress | None]]


@dataclasses.dataclass(frozen=True)
class OnlineEvaluator:
    """What is scored during a run.

    Attributes:
        evaluate: function of the parameters of the teacher's backbone to scores such as {"knn_top1": 61.3}.
        scores: names of the scores, of which the largest value is the best.
    """

    evaluate: Callable[[Params], dict[str, float]]
    scores: tuple[str, ...]

    def check_best(self, name: str) -> None:
        """Raises ValueError unless a name is empty, or that of a score."""
        if name and name not in self.scores:
            known = ", ".join(self.scores) or "none, as nothing is evaluated"
            raise ValueError(f"evaluation.best={name!r}: choose one of {known}")


def make_evaluator(
    configs: Mapping[str, Mapping[str, Any]],
    *,
    backbone_module: Backbone,
    unlabeled: tuple[ImageSource, DataConfig] | None = None,
    folder: Path | None = None,
    bars: Bars = contextlib.nullcontext,
) -> OnlineEvaluator:
    """Returns what scores a backbone by several protocols, which share its features, and without labels.

    Data sets are opened here, so that a wrong path ends a run before its first step. Each call encodes the images
    with the given parameters; nothing compiles again after the first call, and nothing is written.

    Args:
        configs: contents of files in configs/eval, by a name for the scores of protocols that occur twice.
        backbone_module: module of the teacher's backbone.
        unlabeled: training images and their settings, for scores without labels; they are read at the first call.
        folder: folder of temporary files for features beyond a budget; by default the system's.
        bars: returns a context of progress bars.

    Raises:
        ValueError: for settings that cannot work, data that cannot be used, or patches that do not tile the images.
    """
    protocols = [config["protocol"] for config in configs.values()]
    prefixes = {
        name: config["protocol"] if protocols.count(config["protocol"]) == 1 else name
        for name, config in configs.items()
    }
    scorers = {prefixes[name]: _open(name, config, backbone_module) for name, config in configs.items()}
    names = [
        f"{prefixes[name]}_{score}"
        for name, config in configs.items()
        for score in get_protocol(config["protocol"]).score_labels
        if not score.endswith("_deviation")
    ]
    score_crops = make_unlabeled_scores(backbone_module) if unlabeled else None
    crops = functools.cache(lambda: load_crops(*unlabeled)) if unlabeled else None

    @in_float32
    def evaluate(params: Params) -> dict[str, float]:
        # Images come from the host, which a transfer guard around the loop would forbid.
        with jax.transfer_guard("allow"), bars() as progress:
            params = on_first_device(params)
            found = score_crops(params, crops()) if score_crops and crops else {}
            # Batches of another size may round otherwise than those of launch/evaluate.py.
            shared: dict[MemoryBudget, FrozenFeatures] = {}
            for prefix, (score, budget) in scorers.items():
                if budget not in shared:
                    remember = [other for _, other in scorers.values()].count(budget) > 1
                    settings: Any = {"budget": budget, "folder": folder, "progress": progress, "remember": remember}
                    shared[budget] = FrozenFeatures(backbone_module, params, **settings)
                found |= {f"{prefix}_{name}": value for name, value in score(shared[budget]).items()}
            return found

    return OnlineEvaluator(evaluate, (*names, *(SCORE_LABELS if unlabeled else ())))


def make_online_evaluator(
    config: Mapping[str, Any], *, backbone_module: Backbone, folder: Path | None = None
) -> Callable[[int, Params], dict[str, float]]:
    """Returns a function of (step, parameters of the teacher's backbone) to scores such as {"knn_top1": 61.3}.

    Args:
        config: content of a file in configs/eval, with a data set; see `make_evaluator`.
        backbone_module: module of the teacher's backbone.
        folder: see `make_evaluator`.

    Raises:
        ValueError: as `make_evaluator`.
    """
    evaluate = make_evaluator({config["protocol"]: config}, backbone_module=backbone_module, folder=folder).evaluate
    # The same images and seeds at every step: only the weights differ.
    return lambda step, params: evaluate(params)


def _open(
    name: str, config: Mapping[str, Any], module: Backbone
) -> tuple[Callable[[FrozenFeatures], dict[str, float]], MemoryBudget]:
    protocol = get_protocol(config["protocol"])
    if config.get("which", "teacher") != "teacher":
        raise ValueError(f"which={config['which']!r}: the teacher is evaluated during a run; leave it out")
    try:
        score, budget = protocol.prepare(config), MemoryBudget(**config.get("budget", {}))
        settings = config[protocol.name]
        if (size := settings.get("image_size")) and not settings.get("whole_patches"):
            FrozenFeatures(module, None).grid(size if isinstance(size, tuple) else (size, size))
    except ValueError as error:
        raise ValueError(f"evaluation of {name}: {error}") from error

    def numbers(features: FrozenFeatures) -> dict[str, float]:
        result = score(features, None)
        known = {name: result.scores.get(name) for name in protocol.score_labels}
        return {name: float(value) for name, value in known.items() if value is not None}

    return numbers, budget


def on_first_device(params: Params) -> Params:
    """Returns parameters on the first device of this process, where launch/evaluate.py has them.

    All processes of a run must call it: those that none holds as a whole are gathered.
    """
    device = jax.local_devices()[0]

    def place(leaf: Any) -> jax.Array:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            whole = leaf if leaf.is_fully_replicated else _gather(cast(NamedSharding, leaf.sharding).mesh)(leaf)
            leaf = whole.addressable_data(0)
        return jax.device_put(leaf, device)

    return jax.tree.map(place, params)


@functools.cache
def _gather(mesh: Any) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(lambda leaf: leaf, out_shardings=NamedSharding(mesh, PartitionSpec()))
