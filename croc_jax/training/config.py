"""The recipe of a run: every setting that decides its numbers, and those that do not."""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping
from typing import Any

from croc_jax.clustering.config import ClusteringConfig
from croc_jax.data.config import DataConfig
from croc_jax.losses import ObjectiveConfig
from croc_jax.models.config import BackboneConfig, HeadConfig
from croc_jax.training.presets import PRESETS
from croc_jax.training.run_config import EvaluationConfig, RuntimeConfig
from croc_jax.training.run_config import MeshConfig as MeshConfig
from croc_jax.training.run_config import WatchdogConfig as WatchdogConfig

_FORMER_LOSSES = {"neighbors", "gram"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW, its schedules, and the teacher's momentum.

    Attributes:
        base_lr: peak learning rate for a batch of 256; scaled linearly with the batch.
        min_lr: learning rate at the end.
        warmup_epochs: linear warm-up from 0.
        weight_decay: decoupled decay at the start, times the learning rate.
        weight_decay_end: decoupled decay at the end.
        teacher_momentum: EMA momentum at the start; it ends at 1.
        clip_norm: largest norm of the gradient of each parameter tensor; 0 for no clipping.
        freeze_last_layer_epochs: epochs during which the last layers are frozen.
        accumulation_steps: microbatches of the batch whose gradients are added up before an update.
        frozen_blocks: blocks of a transformer, from the first, that keep the weights that they start with, as do the
            patch embedding, [CLS], registers and the position embedding; their backward pass is skipped. 0 trains all.
        freeze_backbone_epochs: epochs, perhaps a fraction of one, during which the heads of a transformer train alone;
            the backbone's Adam starts to count after them.
    """

    base_lr: float = 5e-4
    min_lr: float = 1e-6
    warmup_epochs: int = 10
    weight_decay: float = 0.04
    weight_decay_end: float = 0.4
    teacher_momentum: float = 0.996
    clip_norm: float = 3.0
    freeze_last_layer_epochs: int = 1
    accumulation_steps: int = 1
    frozen_blocks: int = 0
    freeze_backbone_epochs: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """How long a run is.

    Attributes:
        epochs: passes over the images.
        batch_size: images an update, over all devices.
    """

    epochs: int = 300
    batch_size: int = 256

    def __post_init__(self) -> None:
        """Raises ValueError, naming the field and the value, for settings that cannot work."""
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be 1 or more")


@dataclasses.dataclass(frozen=True, kw_only=True)
class InitConfig:
    """Weights that a run starts from, instead of random ones.

    Attributes:
        source: a workdir, a checkpoint of one, a file or a folder, as for evaluation; empty for random weights.
        parts: "backbone", with new heads; or "networks": student and teacher as they are, with both
            heads and the centers, of a workdir or of the official code. DINO's checkpoints have no layer for
            centroids: it and its center are initialized.
        which: "teacher" or "student": the network whose backbone both networks start from.
        rgb_channels: where weights for RGB images start a run on others, the three channels, from 0, that get the
            filters of red, green and blue; all others start at zero. Empty for the mean of the three filters, times
            3 / channels, in each channel.
    """

    source: str = ""
    parts: str = "backbone"
    which: str = "teacher"
    rgb_channels: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Raises ValueError, naming the field and the value, for settings that cannot work."""
        for name, known in (("parts", ("backbone", "networks")), ("which", ("teacher", "student"))):
            if getattr(self, name) not in known:
                raise ValueError(f"init_from.{name}={getattr(self, name)!r}: choose one of {', '.join(known)}")
        if self.rgb_channels and (len(self.rgb_channels) != 3 or min(self.rgb_channels) < 0):
            raise ValueError(f"init_from.rgb_channels={self.rgb_channels}: name three channels, counted from 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """All settings of a run, in groups.

    Attributes:
        seed: seed of all that is random: weights, order of the images, crops, colors, first centroids.
        preset: the variant of `configs/presets.py` that the settings come from; empty for none.
    """

    seed: int = 0
    preset: str = ""
    backbone: BackboneConfig = BackboneConfig()
    head: HeadConfig = HeadConfig()
    clustering: ClusteringConfig = ClusteringConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    data: DataConfig = DataConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    init_from: InitConfig = InitConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    runtime: RuntimeConfig = RuntimeConfig()

    def __post_init__(self) -> None:
        """Raises ValueError, naming the field and the value, for groups that do not fit each other."""
        if self.preset and self.preset not in PRESETS:
            raise ValueError(f"preset={self.preset!r}: choose one of {', '.join(PRESETS)}")
        if self.data.channels != self.backbone.channels:
            raise ValueError(
                f"data.channels={self.data.channels}: backbone.image_mean and image_std have {self.backbone.channels} "
                "numbers; give one a channel, or let launch/prepare.py --statistics measure them for data.statistics"
            )
        if max(self.init_from.rgb_channels, default=0) >= self.data.channels:
            raise ValueError(
                f"init_from.rgb_channels={self.init_from.rgb_channels}: the channels of images are 0 to "
                f"{self.data.channels - 1}"
            )


# Where a run finds what it reads. The images themselves are compared, and weights count at the start of a run alone.
PATHS = ("data.folders", "data.sources", "data.statistics", "init_from.source")
# Settings, or groups of them, that change no number of a run: they may differ when it is resumed. All others decide it.
HARMLESS = (*PATHS, "preset", "data.max_bad_fraction", "data.shown_channels", "backbone.remat", "evaluation", "runtime")


def decides_numbers(name: str) -> bool:
    """Returns whether a setting decides the numbers of a run, by a name such as "optimizer.base_lr"."""
    return not any(name == harmless or name.startswith(f"{harmless}.") for harmless in HARMLESS)


class RecipeError(ValueError):
    """A setting is unknown or of the wrong type; the message names it and suggests a remedy."""


def recipe_from_dict(settings: Mapping[str, Any]) -> Recipe:
    """Builds a recipe from nested mappings (a ConfigDict as dict, or a config.json).

    Fields left out keep their defaults.

    Raises:
        RecipeError: for an unknown field (with the nearest known one), a value of the wrong type, or a loss that there
            is no more.
    """
    return _build(Recipe, _without_former_losses(settings), prefix="")


def _without_former_losses(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Leaves out groups of losses that an earlier version wrote into each config.json, where they were off."""
    objective = settings.get("objective")
    if not isinstance(objective, Mapping):
        return settings
    for name in _FORMER_LOSSES & objective.keys():
        if weight := objective[name].get("weight"):
            raise RecipeError(f"objective.{name}.weight={weight}: this version has no such loss, commit f517e1e has")
    return {**settings, "objective": {name: objective[name] for name in objective if name not in _FORMER_LOSSES}}


def recipe_to_dict(recipe: Recipe) -> dict[str, Any]:
    """Returns nested plain dicts that `recipe_from_dict` and JSON understand."""
    return dataclasses.asdict(recipe)


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns {"optimizer.base_lr": 5e-4, ...} for nested mappings."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat


def _build(kind: type, settings: Mapping[str, Any], *, prefix: str) -> Any:
    types_ = typing.get_type_hints(kind)
    unknown = [name for name in settings if name not in types_]
    if unknown:
        near = difflib.get_close_matches(unknown[0], list(types_), n=1)
        hint = f"did you mean {prefix}{near[0]}?" if near else f"known fields: {', '.join(types_)}"
        raise RecipeError(f"unknown field {prefix}{unknown[0]}; {hint}")
    values = {}
    for name, value in settings.items():
        if dataclasses.is_dataclass(types_[name]):
            if not isinstance(value, Mapping):
                raise RecipeError(f"{prefix}{name}={value!r}: expected a group of settings")
            values[name] = _build(typing.cast(type, types_[name]), value, prefix=f"{prefix}{name}.")
        else:
            values[name] = _coerce(types_[name], value, f"{prefix}{name}")
    try:
        return kind(**values)
    except ValueError as error:
        raise RecipeError(f"{prefix}{error}" if prefix else str(error)) from error


def _coerce(kind: Any, value: Any, name: str) -> Any:
    origin = typing.get_origin(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        kind = next(arg for arg in typing.get_args(kind) if arg is not type(None))
        origin = typing.get_origin(kind)
    if origin is tuple and isinstance(value, list | tuple):
        inner = typing.get_args(kind)
        if inner[-1] is Ellipsis:
            return tuple(_coerce(inner[0], item, name) for item in value)
        if len(value) == len(inner):
            return tuple(_coerce(arg, item, name) for arg, item in zip(inner, value, strict=True))
    elif kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        if math.isnan(value):
            raise RecipeError(f"{name}={value}: not a number")
        return float(value)
    elif origin is None and type(value) is kind:
        return value
    expected = kind if origin else getattr(kind, "__name__", kind)
    raise RecipeError(f"{name}={value!r}: expected {expected}")
