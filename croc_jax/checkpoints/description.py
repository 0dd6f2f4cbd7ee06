"""What JSON files beside weights say of a network: heads, activation, epsilon, and how its images are normalized."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from croc_jax.checkpoints.file_kinds import shorten
from croc_jax.models.position_embedding import ROPE_BASE
from croc_jax.pixel_format import PixelFormat

HF_CONFIG, HF_PREPROCESSOR = "config.json", "preprocessor_config.json"
# Of newer folders: the preprocessor is a part of it.
_PROCESSOR = "processor_config.json"
# Epsilons that Hugging Face's configs have unless they say otherwise.
_EPSILONS = {
    "vit": 1e-12, "vit_mae": 1e-12, "vit_msn": 1e-6, "dinov2": 1e-6, "dinov2_with_registers": 1e-6, "dinov3_vit": 1e-5
}  # fmt: skip
# Names of the exact GELU.
_GELU = ("gelu", "gelu_python", "gelu_erf")
_MAX_VALUE = 255
# Fields of preprocessor_config.json that no library has.
DTYPE, RANGE = "image_dtype", "image_range"
_DIGITS = 12
_LARGEST = 10**6


class Description(NamedTuple):
    """Settings that shapes of arrays do not show; None where the files do not state one.

    Attributes:
        num_heads: attention heads.
        norm_epsilon: epsilon of the layer normalizations.
        activation: name of the function in the MLPs.
        image_mean: what is subtracted from each channel, from 0 to 1; one number for all, or one for each.
        image_std: what each channel is divided by then.
        image_dtype: type of the stored values of images.
        image_range: the values of them that become 0 and 1, see `PixelFormat`.
        is_timm: whether the config is timm's.
        is_dinov3: whether it is that of Hugging Face's DINOv3 ViT.
        problems: what the files say that no network here computes, in words.
    """

    num_heads: int | None = None
    norm_epsilon: float | None = None
    activation: str | None = None
    image_mean: float | tuple[float, ...] | None = None
    image_std: float | tuple[float, ...] | None = None
    image_dtype: str | None = None
    image_range: tuple[float, ...] | None = None
    is_timm: bool = False
    is_dinov3: bool = False
    problems: tuple[str, ...] = ()

    def activation_problems(self, *, expected: str) -> list[str]:
        """Returns what is wrong with the activation, if it is stated: only the expected one is computed here."""
        known = _GELU if expected == "gelu" else (expected,)
        if self.activation is None or self.activation in known:
            return []
        exact = "the exact gelu" if expected == "gelu" else expected
        return [f"its activation (hidden_act or act_layer) is {self.activation!r}; only {exact} is supported here"]


NOTHING_KNOWN = Description()


def read_description(folder: Path) -> Description:
    """Returns what config.json and preprocessor_config.json of a folder say; nothing if they are not there.

    Raises:
        ValueError: if a file cannot be parsed, or a setting is not of its type; with the file and the setting.
    """
    config = _read(folder / HF_CONFIG)
    images = _read(folder / HF_PREPROCESSOR)
    if not images:
        images = _group(_read(folder / _PROCESSOR), "image_processor", folder)
    args, timm = (_group(config, name, folder) for name in ("model_args", "pretrained_cfg"))
    kind = config.get("model_type")
    problems = []
    if "norm_layer" in args:
        problems.append(f"norm_layer={args['norm_layer']!r} is set, whose epsilon is not known")
    if (base := config.get("rope_theta", ROPE_BASE)) != ROPE_BASE and kind == "dinov3_vit":
        problems.append(f"rope_theta={base!r}; only {ROPE_BASE:g} is supported here")
    try:
        colors = _colors(images) if images else _timm_colors({**config, **timm})
        return Description(
            num_heads=_number({**args, **config}, "num_attention_heads", int) or _number(args, "num_heads", int),
            norm_epsilon=_number(config, "layer_norm_eps", float) or _EPSILONS.get(str(kind)),
            activation=_activation(config, args),
            **colors,
            # Hugging Face's configs have "architectures".
            is_timm="architecture" in config,
            is_dinov3=kind == "dinov3_vit",
            problems=tuple(problems),
        )
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None


def read_json(file: Path) -> dict[str, Any]:
    """Returns the dictionary that a JSON file holds.

    Raises:
        ValueError: if it cannot be parsed, or holds something else.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"cannot read {file} ({shorten(str(error), 200)})") from error
    if not isinstance(found, dict):
        raise ValueError(f"cannot read {file}: it holds a {type(found).__name__}, not a dictionary")
    return found


def _read(file: Path) -> dict[str, Any]:
    return read_json(file) if file.is_file() else {}


def _group(config: Mapping[str, Any], name: str, folder: Path) -> Mapping[str, Any]:
    found = config.get(name) or {}
    if not isinstance(found, Mapping):
        raise ValueError(f"{folder}: {name}={shorten(repr(found), 80)} is no dictionary")
    return found


def _activation(config: Mapping[str, Any], args: Mapping[str, Any]) -> str | None:
    stated = config.get("hidden_act") or args.get("act_layer")
    # The name of some models of timm says it.
    return "quick_gelu" if "quickgelu" in str(config.get("architecture")) else None if stated is None else str(stated)


def _number(config: Mapping[str, Any], name: str, kind: type) -> Any:
    value = config.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | kind) or not 0 < value < _LARGEST:
        raise ValueError(f"{name}={shorten(repr(value), 80)} is no {kind.__name__} above 0")
    return kind(value)


def _colors(images: Mapping[str, Any]) -> dict[str, Any]:
    """Returns mean and deviation of Hugging Face's image processors, which come after a division by 255.

    Type and range of other images are fields of our own, see `describe_images`.
    """
    if DTYPE in images:
        return _read_images(images)
    scale = images.get("rescale_factor", 1 / _MAX_VALUE)
    if images.get("do_rescale", True) is not True or not isinstance(scale, float):
        raise ValueError(f"{HF_PREPROCESSOR} does not rescale images by a number (do_rescale, rescale_factor)")
    if abs(scale * _MAX_VALUE - 1) > 1e-6 or images.get("offset"):
        raise ValueError(
            f"{HF_PREPROCESSOR}: rescale_factor={scale:g}; only 1/{_MAX_VALUE} without offset is supported"
        )
    if images.get("do_normalize") is False:
        return {"image_mean": 0.0, "image_std": 1.0}
    missing = [name for name in ("image_mean", "image_std") if images.get(name) is None]
    if missing:
        raise ValueError(f"{HF_PREPROCESSOR} does not state {' and '.join(missing)}: add them there")
    return {name: _numbers(images, name) for name in ("image_mean", "image_std")}


def _timm_colors(config: Mapping[str, Any]) -> dict[str, Any]:
    if config.get("mean") is None or config.get("std") is None:
        return {}
    return {"image_mean": _numbers(config, "mean"), "image_std": _numbers(config, "std")}


def _numbers(config: Mapping[str, Any], name: str) -> float | tuple[float, ...]:
    """Returns one number for all channels, or one for each."""
    values = config.get(name)
    for value in values if isinstance(values, list) and values else [values]:
        if isinstance(value, bool) or not isinstance(value, int | float) or not -_LARGEST < value < _LARGEST:
            raise ValueError(f"{name}={shorten(repr(values), 80)}: expected a number for each channel")
    return tuple(map(float, values)) if isinstance(values, list) else float(values)  # pyright: ignore


def describe_images(mean: Sequence[float], std: Sequence[float], pixels: PixelFormat) -> dict[str, Any]:
    """Returns what preprocessor_config.json says of images, as `read_description` reads it.

    Values of 8 bits are divided by 255 first, as everywhere. Libraries have no other mapping for each channel: mean and
    deviation of other images are in units of their stored values, which differs only for values beyond the range.
    """
    known = {"image_processor_type": "ViTImageProcessor", "do_normalize": True, "do_resize": False}
    if pixels.dtype == "uint8" and not pixels.range:
        return {**known, "do_rescale": True, "rescale_factor": 1 / _MAX_VALUE, "image_mean": mean, "image_std": std}
    low, high = map(np.array, pixels.limits)
    stored = {"image_mean": (low + mean * (high - low)).tolist(), "image_std": (std * (high - low)).tolist()}
    return {**known, "do_rescale": False, **stored, DTYPE: pixels.dtype, RANGE: pixels.range}


def _read_images(images: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the inverse of `describe_images`, for formats that libraries have no field for."""
    mean, std = (np.atleast_1d(_numbers(images, name)) for name in ("image_mean", "image_std"))
    limits = np.atleast_1d(_numbers(images, RANGE)) if images.get(RANGE) else np.array([])
    pixels = PixelFormat(channels=len(mean), dtype=str(images[DTYPE]), range=tuple(limits.tolist()))
    low, high = map(np.array, pixels.limits)
    units = {"image_mean": (mean - low) / (high - low), "image_std": std / (high - low)}
    # Rounding may lead out of 0 to 1.
    found = {name: tuple(np.round(values, _DIGITS).tolist()) for name, values in units.items()}
    return {**found, DTYPE: pixels.dtype, RANGE: pixels.range}


def format_setting(value: Any) -> str:
    """Returns a setting as one word of a command line.

    Examples:
        >>> format_setting((0.5, 0.25, 0.5)), format_setting(1e-6)
        ('0.5,0.25,0.5', '1e-06')
    """
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
