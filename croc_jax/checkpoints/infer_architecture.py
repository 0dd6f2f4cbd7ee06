"""Tells what a backbone is from its weights, and compares them with what such a backbone has."""

import collections
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from croc_jax.checkpoints.convnet_mapping import collect_convolutional, detect
from croc_jax.checkpoints.manifest import flatten_tree
from croc_jax.checkpoints.pretrained_mapping import ReadNames, collect_names, their_names
from croc_jax.checkpoints.vit_mapping import Params, nest
from croc_jax.checkpoints.weight_files import HF_WEIGHTS, TORCH_WEIGHTS
from croc_jax.models import BackboneConfig, make_backbone
from croc_jax.models.registry import CONVOLUTIONAL, VARIANTS

# Of transformers whose weights and names do not tell, but for the sizes below.
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
# Of a model without a learned position embedding, or where the file does not tell.
_GRID, _PATCH_SIZE = 14, 16
# Of convolutional networks as they were trained.
_CONVOLUTIONAL_STRIDE, _CONVOLUTIONAL_SIZE = 32, 224


class Architecture(NamedTuple):
    """What a backbone is.

    Attributes:
        config: of the backbone.
        image_size: side of the square images that its position embedding was learned for.
    """

    config: BackboneConfig
    image_size: int

    @property
    def width(self) -> int:
        """Features of a token."""
        return self.config.width or (VARIANTS | CONVOLUTIONAL)[self.config.variant][0]


class ReadBackbone(NamedTuple):
    """A backbone, and all that is wrong with its weights.

    Attributes:
        architecture: of the backbone, as far as the weights tell.
        params: under our names; whole where nothing is wrong.
        guessed: settings that the weights do not tell, and what is taken for them where nobody
            knows better; None if nothing is.
        wrong: what is unknown, missing, in excess or of another shape, in words.
        kind: of network, for messages.
    """

    architecture: Architecture
    params: Params
    guessed: dict[str, Any]
    wrong: list[str]
    kind: str


def read_backbone(
    weights: Mapping[str, Any],
    *,
    description: Mapping[str, Any] | None = None,
    num_heads: int | None = None,
    default_heads: int | None = None,
    like: Architecture | None = None,
) -> ReadBackbone:
    """Reads a backbone under the names of any known library.

    Args:
        weights: by name.
        description: what a config.json says of them.
        num_heads: of a transformer, where it is known better than by the weights.
        default_heads: of a transformer whose weights do not tell, if they divide its width.
        like: what the backbone must be; else the weights tell.
    """
    found = detect(weights)
    if found is not None:
        kind = found[0]
        read, stages, name_of = collect_convolutional(weights, *found)
        architecture, wrong = _infer_convolutional(read.flat, kind, stages)
        config = architecture.config
        guessed = {"patch_size": config.patch_size, "norm_epsilon": config.norm_epsilon}
    else:
        kind, read, name_of = "vision transformer", collect_names(weights), their_names(weights)
        architecture, guessed, wrong = _infer_transformer(read, weights, description or {}, num_heads, default_heads)
    architecture = like or architecture
    try:
        expected = shapes_of(_abstract_params(architecture))
        wrong += compare_shapes(read.flat, expected, spoiled=read.spoiled, name_of=name_of)
    except ValueError as error:
        wrong.append(str(error))
    return ReadBackbone(architecture, nest(read.flat), guessed, read.wrong + wrong, kind)


def compare_shapes(
    flat: Mapping[str, Any],
    expected: Mapping[str, tuple[int, ...]],
    *,
    spoiled: Iterable[str] = (),
    name_of: Callable[[str], str] = lambda place: "",
) -> list[str]:
    """Returns what is missing, in excess, and of another shape, in words.

    Args:
        flat: arrays by our path.
        expected: shapes by our path.
        spoiled: our paths of which enough was said.
        name_of: how others call a path of ours.
    """
    wrong = []
    for place in sorted(expected.keys() - flat.keys() - set(spoiled)):
        name = name_of(place)
        wrong.append(f"no {place} ({name})" if name not in ("", place) else f"no {place}")
    wrong += [f"{place} in excess" for place in sorted(flat.keys() - expected.keys())]
    for place in sorted(flat.keys() & expected.keys()):
        if np.shape(flat[place]) != expected[place] and place not in spoiled:
            wrong.append(f"{place} is {np.shape(flat[place])}, not {expected[place]}")
    return wrong


def shapes_of(tree: Any) -> dict[str, tuple[int, ...]]:
    """Returns shapes by path."""
    return {name: leaf.shape for name, leaf in flatten_tree(tree).items()}


def _abstract_params(architecture: Architecture) -> Any:
    config, size = architecture
    module = make_backbone(config, image_size=size)
    image = jax.ShapeDtypeStruct((1, size, size, 3), np.float32)
    return jax.eval_shape(module.init, jax.random.key(0), image)["params"]


def _infer_convolutional(
    flat: Mapping[str, np.ndarray], family: str, stages: tuple[int, ...]
) -> tuple[Architecture, list[str]]:
    wrong = [f"no blocks of stage {stage}" for stage, count in enumerate(stages) if not count]
    stages = tuple(max(count, 1) for count in stages)
    names = [name for name in CONVOLUTIONAL if name.startswith(family)]
    last = r"stage_3_block_\d+/(norm_3/.*|scale|mlp_2/bias)"
    width = _most_common(flat, last, axis=-1) or CONVOLUTIONAL[names[0]][0]
    variant = next((name for name in names if CONVOLUTIONAL[name] == (width, stages)), None)
    sizes: Any = {"variant": names[0], "width": width, "stages": stages} if variant is None else {"variant": variant}
    return Architecture(BackboneConfig(patch_size=_CONVOLUTIONAL_STRIDE, **sizes), _CONVOLUTIONAL_SIZE), wrong


def _infer_transformer(
    read: ReadNames,
    weights: Mapping[str, Any],
    description: Mapping[str, Any],
    num_heads: int | None,
    default_heads: int | None,
) -> tuple[Architecture, dict[str, Any], list[str]]:
    """Tells the architecture from shapes, and from what the library calls its weights; adds to what is spoiled."""
    flat, wrong = read.flat, []
    width = _most_common(flat, r"cls_token|(.*/)?norm(_\d)?/.*|.*/projection/bias", axis=-1) or _HEAD_WIDTH
    depth = 1 + max((int(name[6 : name.index("/")]) for name in flat if name.startswith("block_")), default=0)
    hidden = _most_common(flat, r"block_\d+/mlp_2/kernel", axis=0) or 4 * width
    gated = _most_common(flat, r"block_\d+/mlp_1/(kernel|bias)", axis=-1) == 2 * hidden
    # DINOv2's gates are SiLU whatever its config says.
    is_dinov3 = description.get("model_type") == "dinov3_vit"
    if gated and is_dinov3 and (gate := description.get("hidden_act", "silu")) != "silu":
        wrong.append(f"hidden_act={gate!r} gates the MLPs; only silu is known")
    has_embedding = "position_embedding" in flat or "position_embedding" in read.spoiled
    rope = not has_embedding and (is_dinov3 or _has_rope(flat, weights))
    side, fault = _learned_grid(flat, read.spoiled)
    patch_size, other_fault = _patch_size(flat, read.spoiled)
    wrong += fault + other_fault
    stated = description.get("num_attention_heads") or (description.get("model_args") or {}).get("num_heads")
    num_heads, told, faults = _count_heads(
        weights, num_heads or stated, width=width, depth=depth, rope=rope, default=default_heads
    )
    wrong += faults
    epsilon = 1e-5 if rope else 1e-6
    guessed: dict[str, Any] = {} if told else {"num_heads": None if width % _HEAD_WIDTH else width // _HEAD_WIDTH}
    guessed |= {} if "layer_norm_eps" in description else {"norm_epsilon": epsilon}
    variant = next((name for name, size in VARIANTS.items() if size == (width, depth, num_heads)), None)
    sizes: Any = {"width": width, "depth": depth, "num_heads": num_heads} if variant is None else {"variant": variant}
    config = BackboneConfig(
        patch_size=patch_size,
        mlp_ratio=hidden / width,
        num_registers=_most_common(flat, "register_tokens", axis=-2) or 0,
        layer_scale=any(re.fullmatch(r"block_\d+/scale_\d", name) for name in flat),
        mlp="swiglu" if gated else "gelu",
        positions="rope" if rope else "learned",
        position_resizing=_resizing(weights, description),
        norm_epsilon=description.get("layer_norm_eps", epsilon),
        **sizes,
    )
    return Architecture(config, side * patch_size), guessed, wrong


def _most_common(flat: Mapping[str, np.ndarray], pattern: str, *, axis: int) -> int | None:
    """Returns the size that most of some arrays have along an axis, so that one odd array does not matter."""
    found = (array.shape for name, array in flat.items() if re.fullmatch(pattern, name))
    sizes = [shape[axis] for shape in found if len(shape) >= (axis + 1 if axis >= 0 else -axis)]
    return collections.Counter(sizes).most_common(1)[0][0] if sizes else None


def _has_rope(flat: Mapping[str, np.ndarray], weights: Mapping[str, Any]) -> bool:
    """Tells a network that rotates from one whose position embedding is missing."""
    if any(_ROPE_NAMES.fullmatch(name) for name in weights):
        return True
    of_dinov2 = any("mask_token" in name or "encoder.layer" in name for name in weights)
    has_bias = any(name.endswith((".qkv.bias", ".query.bias", ".q_proj.bias")) for name in weights)
    return not of_dinov2 and (not has_bias or ("register_tokens" in flat and "block_0/scale_1" in flat))


def _learned_grid(flat: Mapping[str, np.ndarray], spoiled: set[str]) -> tuple[int, list[str]]:
    """Returns rows (and columns) of patches that a position embedding was learned for, and what is wrong with it."""
    embedding = flat.get("position_embedding")
    if embedding is None:
        return _GRID, []
    count = embedding.shape[1] if embedding.ndim == 3 else 0
    side = round(max(count - 1, 0) ** 0.5)
    if side and side**2 + 1 == count:
        return side, []
    spoiled.add("position_embedding")
    what = f"{count} positions of {embedding.shape[-1]} features" if count else f"position_embedding {embedding.shape}"
    return _GRID, [f"{what}, where one more than a square number is needed"]


def _patch_size(flat: Mapping[str, np.ndarray], spoiled: set[str]) -> tuple[int, list[str]]:
    """Returns the side of a patch, and what is wrong with what takes patches."""
    place = "patch_embedding/projection/kernel"
    if place not in flat:
        return _PATCH_SIZE, []
    side = round((len(flat[place]) / 3) ** 0.5)
    if side and 3 * side**2 == len(flat[place]):
        return side, []
    spoiled.add(place)
    return _PATCH_SIZE, [f"{place} takes {len(flat[place])} values, where 3 colors of square patches are needed"]


def _count_heads(
    weights: Mapping[str, Any], stated: int | None, *, width: int, depth: int, rope: bool, default: int | None = None
) -> tuple[int, bool, list[str]]:
    """Returns how many heads a transformer has, whether anything tells their number, and what is wrong with it."""
    periods = next((np.size(array) for name, array in weights.items() if _PERIODS.fullmatch(name)), 0)
    known = None if periods else (_ROPE_HEADS if rope else _LEARNED_HEADS).get((width, depth))
    if count := stated or known:
        return (
            (count, True, [])
            if width % count == 0
            else (1, True, [f"num_heads={count} does not divide {width} features"])
        )
    if default and not periods and width % default == 0:
        return default, False, []
    # Half of a head's features are for rows, and two share a period.
    head_width = 4 * periods or _HEAD_WIDTH
    if width % head_width == 0:
        return width // head_width, bool(periods), []
    hint = (
        "state their number as load_backbone(..., num_heads=...), or as num_attention_heads in a config.json beside "
        f"the weights, which are called {HF_WEIGHTS} then (or {TORCH_WEIGHTS})"
    )
    return 1, bool(periods), [f"{width} features do not make heads of {head_width}: {hint}"]


def _resizing(names: Iterable[str], description: Mapping[str, Any]) -> str:
    """Tells how the library that ships these weights resizes a position embedding."""
    names = list(names)
    has_registers = any(re.search(r"(reg|register|storage)_tokens?$", name) for name in names)
    # A config.json of timm's has this; Hugging Face's has "architectures".
    if has_registers or "architecture" in description:
        return "antialias"
    if any("embeddings." in name for name in names):
        return "plain"
    # DINOv2's own files have a mask token, which timm drops.
    of_timm = any(name.endswith("ls1.gamma") for name in names) and not any("mask_token" in name for name in names)
    return "antialias" if of_timm else "offset"
