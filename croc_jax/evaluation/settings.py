"""Settings that several protocols share, and checks of settings."""

import dataclasses
from collections.abc import Iterable


def check_positive(config: object, *fields: str) -> None:
    """Raises ValueError, naming the field and the value, for settings that are not above 0."""
    for name in fields:
        if not getattr(config, name) > 0:
            raise ValueError(f"{name}={getattr(config, name)}: must be positive")


def check_choice(config: object, field: str, choices: Iterable[str]) -> None:
    """Raises ValueError, naming the field and the value, for an unknown choice."""
    if getattr(config, field) not in choices:
        raise ValueError(f"{field}={getattr(config, field)!r}: choose one of {', '.join(choices)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PoolingConfig:
    """How a whole image becomes one vector.

    Attributes:
        feature: "cls" (the normalized [CLS] token), "mean" (of the normalized patch tokens) or "cls_mean" (both
            concatenated; DINO's `avgpool_patchtokens`).
        resize: pixels of the shorter side of a resized image.
        image_size: side of the square in its middle, in pixels.
    """

    feature: str = "cls"
    resize: int = 256
    image_size: int = 224

    def __post_init__(self) -> None:
        """Raises ValueError, naming the field and the value, for settings that cannot work."""
        check_choice(self, "feature", ("cls", "mean", "cls_mean"))
        if not 0 < self.image_size <= self.resize:
            raise ValueError(
                f"image_size={self.image_size}, resize={self.resize}: the crop must lie within the resized image"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """How a linear layer is trained on frozen features.

    Attributes:
        normalization: normalization of features by the statistics of the training features: "none", "standardize"
            (each feature) or "whiten" (every direction). Without weight decay the optimum of the linear layer does
            not depend on it; how soon it is reached does.
        lr: learning rate at the start.
        weight_decay: weight decay of kernel and bias.
        epochs: passes over the training images; the last incomplete batch is dropped.
        batch_size: images a step; at most the training images.
        seed: seed of the order of the images; the layer itself starts from zeros.
    """

    normalization: str = "whiten"
    lr: float = 0.05
    weight_decay: float = 0.0
    epochs: int = 30
    batch_size: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises ValueError, naming the field and the value, for settings that cannot work."""
        check_choice(self, "normalization", ("none", "standardize", "whiten"))
        check_positive(self, "lr", "epochs", "batch_size")
