"""Infers the architecture of a backbone from its weights, and compares these with what such a backbone has."""

import collections
import dataclasses
import functools
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from croc_jax.checkpoints.description import NOTHING_KNOWN, Description
from croc_jax.checkpoints.manifest import flatten_tree
from croc_jax.checkpoints.param_mapping import PATCHES, Params, Reading, Weights, nest
from croc_jax.checkpoints.param_mapping_convnet import detect_family, name_children, read_convnet
from croc_jax.checkpoints.param_mapping_vit import read_vit
from croc_jax.models import BackboneConfig, make_backbone
from croc_jax.models.registry import CONVOLUTIONAL, VARIANTS
from croc_jax.pixel_format import RGB8, PixelFormat

# Width of a head where weights, names and the sizes below leave it open.
_HEAD_WIDTH = 64
# Heads by width and depth: ViT-SO400M, -H, -g and -G as MAE, CLIP and timm have them; and DINOv3's largest.
_LEARNED_HEADS = {(1152, 27): 16, (1280, 32): 16, (1408, 40): 16, (1664, 48): 16}
_ROPE_HEADS = {(4096, 40): 32}
# Names that only networks without a learned position embedding have.
_ROPE_NAMES = re.compile(
    r".*rope_embed\.periods|.*storage_tokens|.*\.gamma_\d|.*embeddings\.patch_embeddings\.(weight|bias)"
    r"|.*\.attn\.[qv]_bias|.*\.mlp\.fc1_g\..*"
)
_PERIODS = re.compile(r".*rope_embed\.periods")
# For a model without a learned position embedding, or where the file does not state it.
_GRID, _PATCH_SIZE = 14, 16
# Convolutional networks as they were trained.
_CONVOLUTIONAL_STRIDE, _CONVOLUTIONAL_SIZE = 32, 224


class PretrainedBackbone(NamedTuple):
    """A backbone that was read from weights.

    Attributes:
        config: settings of the backbone.
        image_size: side of the square images that its position embedding was learned for.
        params: parameters under our names; complete where there are no problems.
        guessed: settings that the weights do not state, and the value that is assumed unless the caller knows better;
            None if there is none.
        problems: what is unknown, missing, unexpected or of another shape, in words.
        kind: kind of network, for messages.
        pixels: format of its images, as far as it is stated.
        epoch: epoch that the file states, or 0.
        prefix: what the names of its arrays begin with in the file.
        note: what was taken of the file and what was left out, in a line; empty for a backbone alone.
    """

    config: BackboneConfig
    image_size: int
    params: Params
    guessed: dict[str, Any]
    problems: list[str]
    kind: str
    pixels: PixelFormat = RGB8
    epoch: int = 0
    prefix: str = ""
    note: str = ""

    @property
    def width(self) -> int:
        """Features of a token."""
        return self.config.width or (VARIANTS | CONVOLUTIONAL)[self.config.variant][0]


def read_backbone(
    weights: Weights,
    *,
    description: Description = NOTHING_KNOWN,
    num_heads: int | None = None,
    default_heads: int | None = None,
    like: PretrainedBackbone | None = None,
) -> PretrainedBackbone:
    """Reads a backbone under the names of any known library.

    Args:
        weights: arrays by name.
        description: what the files beside the weights say.
        num_heads: heads of a transformer, where the caller knows better than the weights.
        default_heads: heads of a transformer whose weights do not state them, if they divide its width.
        like: a backbone of the same architecture; else the architecture is inferred.
    """
    weights = name_children(weights)
    found = detect_family(weights)
    if found is not None:
        kind = found[0]
        reading, stages = read_convnet(weights, *found)
        config, image_size, problems = _infer_convnet(reading.flat, kind, stages)
        guessed = {"patch_size": config.patch_size, "norm_epsilon": config.norm_epsilon}
        problems += description.activation_problems(expected="relu" if kind == "resnet" else "gelu")
    else:
        kind, reading = "vision transformer", read_vit(weights)
        if PATCHES not in reading.flat.keys() | reading.bad:
            kind = "vision transformer, ResNet with bottlenecks, or ConvNeXt"
        config, image_size, guessed, problems = _infer_vit(reading, weights, description, num_heads, default_heads)
    pixels = _pixels(description, channels=reading.first[0] if reading.first else RGB8.channels)
    config, unknown = _normalization(config, description, channels=pixels.channels)
    guessed, problems = guessed | unknown, problems + list(description.problems)
    problems += [f"{path} holds NaN or infinity" for path, array in reading.flat.items() if not _is_finite(array)]
    if like is not None:
        config, image_size = like.config, like.image_size
    try:
        problems += compare_shapes(reading.flat, _backbone_shapes(config, image_size), skip=reading.bad)
    except ValueError as error:
        problems.append(str(error))
    problems = reading.problems + problems
    return PretrainedBackbone(config, image_size, nest(reading.flat), guessed, problems, kind, pixels)


def _pixels(description: Description, *, channels: int) -> PixelFormat:
    """Returns the format of images, of 8 bits unless it is stated; ValueError for one that cannot be."""
    stated = {"dtype": description.image_dtype, "range": description.image_range}
    try:
        return PixelFormat(channels=channels, **{name: value for name, value in stated.items() if value is not None})
    except ValueError as error:
        # Its messages begin with the name of a field.
        raise ValueError(f"image_{error}") from error


def _normalization(
    config: BackboneConfig, description: Description, *, channels: int
) -> tuple[BackboneConfig, dict[str, Any]]:
    """Returns a config with mean and deviation of each channel, and what is guessed of the images.

    Where no file states them, those of RGB are ImageNet's; for other channels there is no guess.

    Raises:
        ValueError: for another number of them than channels.
    """
    found, guessed = {}, {}
    if channels != RGB8.channels and description.image_dtype is None:
        guessed["image_dtype"] = RGB8.dtype
    for name, neutral in (("image_mean", 0.0), ("image_std", 1.0)):
        stated = getattr(description, name)
        # One number without a list stands for all channels.
        values = (stated,) * channels if isinstance(stated, float) else stated
        if values is not None and len(values) not in (channels, RGB8.channels):
            raise ValueError(f"{name}={values}: give one number for each of {channels} channels")
        # Libraries leave the numbers of RGB in the config of a network that they made for other channels.
        if values is None or len(values) != channels:
            guess = guessed[name] = getattr(config, name) if channels == len(config.image_mean) else None
            values = guess or (neutral,) * channels
        found[name] = values
    return dataclasses.replace(config, **found), guessed


def _is_finite(array: np.ndarray) -> bool:
    # The sum of many finite values may overflow.
    return bool(np.isfinite(np.sum(array)) or np.all(np.isfinite(array)))


@functools.lru_cache(maxsize=8)
def _backbone_shapes(config: BackboneConfig, image_size: int) -> dict[str, tuple[int, ...]]:
    module = make_backbone(config, image_size=image_size)
    image = jax.ShapeDtypeStruct((1, image_size, image_size, config.channels), np.float32)
    return shapes_of(jax.eval_shape(module.init, jax.random.key(0), image)["params"])


def compare_shapes(
    flat: Weights,
    expected: Mapping[str, tuple[int, ...]],
    *,
    skip: Collection[str] = (),
) -> list[str]:
    """Returns what is missing, unexpected, and of another shape, in words.

    Args:
        flat: arrays by path.
        expected: shapes by path.
        skip: paths that were reported already.
    """
    problems = [f"missing {path}" for path in sorted(expected.keys() - flat.keys() - set(skip))]
    problems += [f"unexpected {path}" for path in sorted(flat.keys() - expected.keys())]
    for path in sorted(flat.keys() & expected.keys()):
        if np.shape(flat[path]) != expected[path] and path not in skip:
            problems.append(f"{path} is {np.shape(flat[path])}, expected {expected[path]}")
    return problems


def shapes_of(tree: Any) -> dict[str, tuple[int, ...]]:
    """Returns shapes by path."""
    return {name: leaf.shape for name, leaf in flatten_tree(tree).items()}


def _infer_convnet(
    flat: Mapping[str, np.ndarray], family: str, stages: tuple[int, ...]
) -> tuple[BackboneConfig, int, list[str]]:
    problems = [f"no blocks of stage {stage}" for stage, count in enumerate(stages) if not count]
    stages = tuple(max(count, 1) for count in stages)
    names = [name for name in CONVOLUTIONAL if name.startswith(family)]
    last = r"stage_3_block_\d+/(norm_3/.*|scale|mlp_2/bias)"
    width = _most_common(flat, last, axis=-1) or CONVOLUTIONAL[names[0]][0]
    variant = next((name for name in names if CONVOLUTIONAL[name] == (width, stages)), None)
    sizes: Any = {"variant": names[0], "width": width, "stages": stages} if variant is None else {"variant": variant}
    return BackboneConfig(patch_size=_CONVOLUTIONAL_STRIDE, **sizes), _CONVOLUTIONAL_SIZE, problems


def _infer_vit(
    reading: Reading,
    weights: Weights,
    description: Description,
    num_heads: int | None,
    default_heads: int | None,
) -> tuple[BackboneConfig, int, dict[str, Any], list[str]]:
    """Infers a transformer from shapes, and from the library's names; adds paths to `reading.bad`."""
    flat, bad, problems = reading.flat, reading.bad, []
    width = _most_common(flat, r"cls_token|(.*/)?norm(_\d)?/.*|.*/projection/bias", axis=-1) or _HEAD_WIDTH
    depth = 1 + max((int(name[6 : name.index("/")]) for name in flat if name.startswith("block_")), default=0)
    hidden = _most_common(flat, r"block_\d+/mlp_2/kernel", axis=0) or 4 * width
    gated = _most_common(flat, r"block_\d+/mlp_1/(kernel|bias)", axis=-1) == 2 * hidden
    # DINOv2 gates with SiLU whatever its config says.
    if not gated or description.is_dinov3:
        problems += description.activation_problems(expected="silu" if gated else "gelu")
    has_embedding = "position_embedding" in flat or "position_embedding" in bad
    rope = not has_embedding and (description.is_dinov3 or _has_rope(flat, weights))
    side = _learned_grid(flat, bad, problems)
    patch_size = _patch_size(reading.first, bad, problems)
    sizes = {"width": width, "depth": depth, "rope": rope, "default": default_heads}
    num_heads, certain, problem = count_heads(weights, num_heads or description.num_heads, **sizes)
    problems += problem
    epsilon = 1e-5 if rope else 1e-6
    guessed: dict[str, Any] = {} if certain else {"num_heads": None if width % _HEAD_WIDTH else width // _HEAD_WIDTH}
    guessed |= {} if description.norm_epsilon else {"norm_epsilon": epsilon}
    variant = next((name for name, size in VARIANTS.items() if size == (width, depth, num_heads)), None)
    named: Any = {"width": width, "depth": depth, "num_heads": num_heads} if variant is None else {"variant": variant}
    config = BackboneConfig(
        patch_size=patch_size,
        mlp_ratio=hidden / width,
        num_registers=_most_common(flat, "register_tokens", axis=-2) or 0,
        layer_scale=any(re.fullmatch(r"block_\d+/scale_\d", name) for name in flat),
        mlp="swiglu" if gated else "gelu",
        positions="rope" if rope else "learned",
        position_resizing=_resizing(weights, is_timm=description.is_timm),
        norm_epsilon=description.norm_epsilon or epsilon,
        **named,
    )
    return config, side * patch_size, guessed, problems


def _most_common(flat: Mapping[str, np.ndarray], pattern: str, *, axis: int) -> int | None:
    """Returns the size that most of some arrays have along an axis, so that one odd array does not matter."""
    found = (array.shape for name, array in flat.items() if re.fullmatch(pattern, name))
    sizes = [shape[axis] for shape in found if len(shape) >= (axis + 1 if axis >= 0 else -axis)]
    return collections.Counter(sizes).most_common(1)[0][0] if sizes else None


def _has_rope(flat: Mapping[str, np.ndarray], weights: Weights) -> bool:
    """Distinguishes rotary positions from a position embedding that is missing."""
    if any(_ROPE_NAMES.fullmatch(name) for name in weights):
        return True
    is_dinov2 = any("mask_token" in name or "encoder.layer" in name for name in weights)
    has_bias = any(name.endswith((".qkv.bias", ".query.bias", ".q_proj.bias")) for name in weights)
    return not is_dinov2 and (not has_bias or ("register_tokens" in flat and "block_0/scale_1" in flat))


def _learned_grid(flat: Mapping[str, np.ndarray], bad: set[str], problems: list[str]) -> int:
    """Returns rows (and columns) of patches that a position embedding was learned for."""
    embedding = flat.get(path := "position_embedding")
    if embedding is None:
        return _GRID
    count = embedding.shape[1] if embedding.ndim == 3 else 0
    what = f"{count} positions of {embedding.shape[-1]} features" if count else f"{path} {embedding.shape}"
    return _square_root(count - 1, path, f"{what}, expected one more than a square number", bad, problems) or _GRID


def _patch_size(first: tuple[int, ...], bad: set[str], problems: list[str]) -> int:
    rows, columns = first[1:] or (_PATCH_SIZE, _PATCH_SIZE)
    if rows != columns:
        bad.add(PATCHES)
        problems.append(f"{PATCHES} takes patches of {rows} x {columns} pixels, expected square ones")
    return rows


def _square_root(square: float, path: str, problem: str, bad: set[str], problems: list[str]) -> int:
    """Returns a whole root, or 0 with a problem of an array."""
    side = round(max(square, 0) ** 0.5)
    if side**2 == square and side:
        return side
    bad.add(path)
    problems.append(problem)
    return 0


def count_heads(
    weights: Weights, stated: int | None, *, width: int, depth: int, rope: bool, default: int | None = None
) -> tuple[int, bool, list[str]]:
    """Returns the number of heads of a transformer, whether that is certain, and what is wrong with it.

    Args:
        weights: arrays by name.
        stated: heads by the caller or a config.json.
        width: features of a token.
        depth: blocks.
        rope: whether positions are rotary.
        default: heads if nothing else is known, and they divide the width.
    """
    periods = next((np.size(array) for name, array in weights.items() if _PERIODS.fullmatch(name)), 0)
    known = None if periods else (_ROPE_HEADS if rope else _LEARNED_HEADS).get((width, depth))
    if count := stated or known:
        wrong = [f"num_heads={count} does not divide {width} features"] if width % count else []
        return 1 if wrong else count, True, wrong
    if default and not periods and width % default == 0:
        return default, False, []
    # Half of a head's features are for rows, and two share a period.
    head_width = 4 * periods or _HEAD_WIDTH
    if width % head_width == 0:
        return width // head_width, bool(periods), []
    hint = (
        "state their number as load_backbone(..., num_heads=...), or as num_attention_heads in a config.json beside "
        "the weights, which must be called model.safetensors or pytorch_model.bin then"
    )
    return 1, bool(periods), [f"{width} features do not make heads of {head_width}: {hint}"]


def _resizing(names: Iterable[str], *, is_timm: bool) -> str:
    """Returns how the library that ships these weights resizes a position embedding."""
    names = list(names)
    has_registers = any(re.search(r"(reg|register|storage)_tokens?$", name) for name in names)
    if has_registers or is_timm:
        return "antialias"
    if any("embeddings." in name for name in names):
        return "plain"
    # DINOv2's own files have a mask token, which timm drops.
    is_dinov2_of_timm = any(name.endswith("ls1.gamma") for name in names) and not any("mask_token" in n for n in names)
    return "antialias" if is_dinov2_of_timm else "offset"
