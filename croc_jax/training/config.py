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
        freeze_last_layer_epochs: epochs during which both last layers are frozen.
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
class MeshConfig:
    """How devices share the work: a mesh of data x fsdp x model devices.

    Attributes:
        data: groups of devices that split the batch; 0 takes all that the other axes leave.
        fsdp: devices that split the batch and the parameters; 0 takes what a given `data` leaves, else
            chooses: 1 if a whole state fits a device, else the least number at which it fits.
        model: devices that split the prototypes of both heads, and repeat the backbone's work.
    """

    data: int = 0
    fsdp: int = 0
    model: int = 1

    def __post_init__(self) -> None:
        """Raises ValueError, naming the field and the value, for settings that cannot work."""
        for name, least in (("data", 0), ("fsdp", 0), ("model", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: must be {least} or more")


@dataclasses.dataclass(frozen=True, kw_only=True)
class WatchdogConfig:
    """When the metrics of a run count as a collapse, and what follows.

    Entropies and divergences are shares of the logarithm of the number of prototypes.

    Attributes:
        stop_on_collapse: whether a collapse ends the run, once its state is saved; else it is a warning.
        window: consecutive logged rows that show a condition before it counts; 0 to check nothing.
        grace_steps: least number of steps without checks; the warm-up of the learning rate has none either.
        uniform_entropy: a teacher entropy above it is uniform.
        single_entropy: a teacher entropy below it means one prototype for each token ...
        single_kl: ... and a divergence below it, that the student predicts which.
        min_feature_rank: least healthy participation ratio of the [CLS] tokens.
        min_feature_spread: least healthy variance of the [CLS] tokens, as a share of their squared norm.
        min_feature_norm: least healthy mean norm of the [CLS] tokens.
        min_num_clusters: least healthy mean K; not checked where no more than two are possible.
        min_valid_fraction: least healthy share of clusters that both views show.
    """

    stop_on_collapse: bool = False
    window: int = 20
    grace_steps: int = 200
    uniform_entropy: float = 0.99
    single_entropy: float = 0.01
    single_kl: float = 0.2
    min_feature_rank: float = 1.1
    min_feature_spread: float = 1e-4
    min_feature_norm: float = 1e-3
    min_num_clusters: float = 2.05
    min_valid_fraction: float = 0.2

    def __post_init__(self) -> None:
        """Raises ValueError, naming the field and the value, for settings that cannot work."""
        least = ("min_feature_rank", "min_feature_norm", "min_num_clusters")
        for name in ("window", "grace_steps", *least):
            # Nothing compares with a NaN.
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)}: must be 0 or more")
        for name in ("uniform_entropy", "single_entropy", "single_kl", "min_feature_spread", "min_valid_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}: a share, from 0 to 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What is scored and recorded while a run trains; it changes no number of the run.

    Attributes:
        protocols: config files such as "configs/eval/knn.py" or "configs/eval/linear.py:demo", each perhaps followed
            by "@" and its labeled data; scored with the teacher.
        root: labeled data of all protocols that do not name their own.
        overrides: settings "FIELD=VALUE" of the protocols, such as "knn.image_size=96"; each applies to those that
            have the field.
        unlabeled: whether a few training images give scores without labels: retrieval of the other crop, k-means
            compactness and effective rank.
        every_epochs: epochs between two evaluations; 0 chooses by `max_share`.
        max_share: with `every_epochs=0`, the largest share of the time that evaluations take.
        best: the score whose best checkpoint is kept for good, such as "knn_top1"; empty for none.
        pictures: images whose clusters and components are recorded along the run, for the report; 0 for none.
        pictures_every_epochs: epochs between two records; 0 spreads 13 over the run, in a small share of its time.
    """

    protocols: tuple[str, ...] = ()
    root: str = ""
    overrides: tuple[str, ...] = ()
    unlabeled: bool = True
    every_epochs: int = 0
    max_share: float = 0.05
    best: str = ""
    pictures: int = 6
    pictures_every_epochs: int = 0

    def __post_init__(self) -> None:
        """Raises ValueError, naming the field and the value, for settings that cannot work."""
        for name in ("every_epochs", "pictures", "pictures_every_epochs"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}: must be 0 or more")
        if not 0 < self.max_share <= 1:
            raise ValueError(f"max_share={self.max_share}: a share, above 0 and up to 1")
        if wrong := [text for text in self.overrides if "=" not in text]:
            raise ValueError(f"overrides={wrong[0]!r}: expected FIELD=VALUE, such as knn.image_size=96")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """Settings that change no number of a run, and so may differ when it is resumed.

    Attributes:
        num_workers: processes that decode and crop; 0 uses threads of the main process, -1 chooses by
            the number of CPU cores.
        num_threads: threads a worker; -1 chooses by the number of CPU cores.
        log_every_steps: steps between two lines of metrics.jsonl.
        checkpoint_every_minutes: longest time between two saves of the latest state.
        keep_every_epochs: epochs between two checkpoints that are never deleted.
        mesh: how devices share the work.
        watchdog: thresholds of the collapse detection.
        wandb_project: project of Weights & Biases that gets the numbers, too; empty for none.
    """

    num_workers: int = -1
    num_threads: int = -1
    log_every_steps: int = 10
    checkpoint_every_minutes: float = 10.0
    keep_every_epochs: int = 50
    mesh: MeshConfig = MeshConfig()
    watchdog: WatchdogConfig = WatchdogConfig()
    wandb_project: str = ""

    def __post_init__(self) -> None:
        """Raises ValueError, naming the field and the value, for settings that cannot work."""
        for name in ("log_every_steps", "keep_every_epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be 1 or more")
        for name in ("num_workers", "num_threads"):
            if getattr(self, name) < -1:
                raise ValueError(f"{name}={getattr(self, name)}: 0 or more, or -1 to choose by the number of CPU cores")
        if self.checkpoint_every_minutes < 0:
            raise ValueError(f"checkpoint_every_minutes={self.checkpoint_every_minutes}: must be 0 or more")


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
        RecipeError: for an unknown field (with the nearest known one) or a value of the wrong type.
    """
    return _build(Recipe, settings, prefix="")


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
