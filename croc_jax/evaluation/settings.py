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


@dataclasses.dataclass(frozen=True, kw_only=True)
class CropConfig:
    """How training crops are drawn; the defaults are those of DINOv2's segmentation configs.

    Attributes:
        short_side: pixels of the shorter side of a resized image, before `scale` in training.
        crop_size: side of training crops, and of the windows in scoring.
        scale: smallest and largest factor of `short_side` in training.
        antialias: whether smaller images average all pixels, as torchvision's resizing, or not, as OpenCV's.
        max_class_share: another place is tried, up to ten times, for a crop in which one class has this share of the
            labeled pixels or more; 1 takes any place.
        flip: probability of a horizontal flip.
    """

    short_side: int = 512
    crop_size: int = 512
    scale: tuple[float, float] = (0.5, 2.0)
    antialias: bool = False
    max_class_share: float = 0.75
    flip: float = 0.5

    def __post_init__(self) -> None:
        """Raises ValueError, naming the field and the value, for settings that cannot work."""
        check_positive(self, "short_side", "crop_size", "max_class_share")
        if self.crop_size > self.short_side:
            raise ValueError(f"crop_size={self.crop_size}, short_side={self.short_side}: windows must lie in the image")
        if not (len(self.scale) == 2 and 0 < self.scale[0] <= self.scale[1] and self.short_side * self.scale[0] >= 1):
            raise ValueError(f"scale={self.scale}: give the smallest and the largest factor")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip={self.flip}: a probability lies between 0 and 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistortionConfig:
    """How the colors of training crops change; the defaults are those of MMSegmentation.

    Attributes:
        brightness: largest change of all values, which go from 0 to 1.
        contrast: largest change of the factor of all values, from 1.
        saturation: largest change of the factor of the saturation, from 1; images of other channels than red, green
            and blue have none.
        hue: largest change of the hue, in turns; likewise.
        saturation_kind: "hsv" multiplies the saturation of HSV (MMSegmentation), "gray" blends with the gray image
            (torchvision).
    """

    brightness: float = 32 / 255
    contrast: float = 0.5
    saturation: float = 0.5
    hue: float = 0.1
    saturation_kind: str = "hsv"

    def __post_init__(self) -> None:
        """Raises ValueError, naming the field and the value, for settings that cannot work."""
        check_choice(self, "saturation_kind", ("hsv", "gray"))
        for name, most in (("brightness", 1), ("contrast", 1), ("saturation", 1), ("hue", 0.5)):
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"{name}={getattr(self, name)}: must lie between 0 and {most}")
