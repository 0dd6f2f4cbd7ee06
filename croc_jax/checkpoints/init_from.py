"""Starts a run from other weights (`config.init_from`)."""

import dataclasses
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from croc_jax.checkpoints.description import format_setting
from croc_jax.checkpoints.file_kinds import INDEX, identify
from croc_jax.checkpoints.infer_architecture import compare_shapes, shapes_of
from croc_jax.checkpoints.manifest import flatten_tree
from croc_jax.checkpoints.official import MASK_TOKEN, MASKED_LAYER, load_networks, without_masks
from croc_jax.checkpoints.param_mapping import Params, list_problems
from croc_jax.checkpoints.pretrained import is_weights_file, load_pretrained
from croc_jax.checkpoints.restore import find_checkpoints, restore_backbone
from croc_jax.checkpoints.rgb_filters import spread_filters
from croc_jax.models import BackboneConfig, VisionTransformer, make_backbone, patch_grid
from croc_jax.models.position_embedding import resize_position_embedding
from croc_jax.paths import local_path
from croc_jax.pixel_format import RGB8
from croc_jax.training.config import Recipe
from croc_jax.training.state import TrainState

# Settings that weights are made for. A convolution fits any distance of tokens.
_COLORS = ("image_mean", "image_std")
_CONVOLUTIONAL_SETTINGS = ("width", "stages", *_COLORS)
_TRANSFORMER_SETTINGS = (
    "patch_size", "width", "depth", "num_heads", "mlp_ratio", "num_registers", "layer_scale", "mlp", "positions",
    "norm_epsilon", *_COLORS,
)  # fmt: skip


def check_source(recipe: Recipe) -> None:
    """Checks what `recipe.init_from` names; reads no arrays.

    Raises:
        FileNotFoundError: if it does not exist.
        ValueError: if it is neither weights nor a run, or a URL.
    """
    if not recipe.init_from.source:
        return
    source = _source(recipe)
    if not source.exists():
        raise FileNotFoundError(f"init_from.source={source}: there is no such file or folder")
    if source.is_dir():
        if not is_weights_file(source):
            find_checkpoints(source)
    elif not source.name.endswith(INDEX):
        identify(source)


def _source(recipe: Recipe) -> Path:
    return local_path(recipe.init_from.source, name="init_from.source")


def init_from(recipe: Recipe, state: TrainState, *, log: Callable[[str], None] = lambda line: None) -> TrainState:
    """Returns the state with the weights that `recipe.init_from` names in place of its own, if it names any.

    Args:
        recipe: settings of the run.
        state: state before the first step; its optimizer and schedules stay as they are.
        log: called with a line on what of the file is taken, and what the weights lack and is left as it was.

    Raises:
        ValueError: if the weights are for another architecture, listing what is unknown, missing or of another shape;
            see also `load_networks`, `load_pretrained` and `restore_backbone`.
        FileNotFoundError: if there is no such file.
    """
    if not recipe.init_from.source:
        return state
    source = _source(recipe)
    if recipe.init_from.parts == "backbone":
        backbone = {"backbone": _load_backbone(source, recipe, log)}
        return _replace(state, {"student": backbone, "teacher": backbone}, source, keep=("head", MASK_TOKEN))
    networks = load_networks(source, default_heads=_num_heads(recipe.backbone))
    fit = _make_fit(recipe, networks.config, networks.image_size, source, guessed=networks.guessed, log=log)
    new: dict[str, Any] = {"center": networks.center}
    masked, has_masked = recipe.objective.masked.weight > 0, networks.center_masked is not None
    for name, params in (("student", networks.student), ("teacher", networks.teacher)):
        new[name] = {**(params if masked else without_masks(params)), "backbone": fit(params["backbone"])}
    keep = () if has_masked else (MASK_TOKEN, f"head/{MASKED_LAYER}")
    if masked and has_masked:
        new["center_masked"] = networks.center_masked
    elif masked:
        log(f"{source} has no head for masked patches: that layer, its center and the mask token are initialized")
    elif has_masked:
        log(f"{source} has a head for masked patches, which objective.masked.weight=0 leaves out")
    if networks.center_dense is None:
        log(f"{source} has no head for centroids, as runs of DINO: that layer and its center are initialized")
        return _replace(state, new, source, keep=("head/last_layer_dense", *keep))
    return _replace(state, {**new, "center_dense": networks.center_dense}, source, keep=keep)


def _load_backbone(source: Path, recipe: Recipe, log: Callable[[str], None]) -> Params:
    which = recipe.init_from.which
    if is_weights_file(source):
        found = load_pretrained(source, which=which, default_heads=_num_heads(recipe.backbone))
        config, size, params, guessed = found.config, found.image_size, found.params, found.guessed
        if found.note:
            log(f"{source}: {found.note}")
    else:
        saved, params, _ = restore_backbone(source, which=which)
        config, guessed = saved.backbone, {}
        size = config.embedded_size(saved.data.views.crop_size)
    return _make_fit(recipe, config, size, source, guessed=guessed, log=log)(params)


def _make_fit(
    recipe: Recipe,
    config: BackboneConfig,
    image_size: int,
    source: Path,
    *,
    guessed: Collection[str],
    log: Callable[[str], None],
) -> Callable[[Params], Params]:
    """Returns what fits a backbone of this config to the images of a run; errors as for `check_architecture`.

    Raises:
        ValueError: also for weights of images that are neither RGB nor of as many channels as those of the run.
    """
    channels, rgb_channels = recipe.data.channels, recipe.init_from.rgb_channels
    spread = config.channels == RGB8.channels and (channels != config.channels or bool(rgb_channels))
    if rgb_channels and not spread:
        raise ValueError(
            f"init_from.rgb_channels={rgb_channels}: {source} is for images of {config.channels} channels, not RGB: "
            "leave it out"
        )
    if channels != config.channels and not spread:
        raise ValueError(
            f"{source} is for images of {config.channels} channels, and data.channels={channels}: a run starts from "
            "weights for RGB images, or for as many channels as its own"
        )
    # The run normalizes its own channels, whatever those of RGB were normalized by.
    check_architecture(config, recipe.backbone, source, guessed={*guessed, *(_COLORS if spread else ())})
    if spread:
        filters = "each gets the mean of the filters of red, green and blue, times 3 / channels"
        if rgb_channels:
            filters = (
                f"channels {format_setting(rgb_channels)} get the filters of red, green and blue, others start at 0"
            )
        log(f"{source} is for RGB images, and the run for {recipe.data.pixels.describe()}: {filters}")

    def fit(params: Params) -> Params:
        params = spread_filters(params, channels=channels, rgb_channels=rgb_channels) if spread else params
        return _fit_positions(params, recipe, config, image_size)

    return fit


def _fit_positions(params: Params, recipe: Recipe, config: BackboneConfig, image_size: int) -> Params:
    """Returns a backbone with its position embedding resized from its own images to those of the recipe's."""
    grid, size = image_size // config.patch_size, recipe.backbone.embedded_size(recipe.data.views.crop_size)
    rows, columns = patch_grid((size, size), recipe.backbone.patch_size)
    if "position_embedding" not in params or rows == grid:
        return params
    resized = resize_position_embedding(
        jnp.asarray(params["position_embedding"]), (grid, grid), (rows, columns), resizing=config.position_resizing
    )
    return {**params, "position_embedding": np.asarray(resized)}


def _num_heads(config: BackboneConfig) -> int | None:
    """Returns the number of heads of a transformer, or None for a convolutional network."""
    return getattr(make_backbone(config, image_size=config.patch_size), "num_heads", None)


def check_architecture(
    found: BackboneConfig, wanted: BackboneConfig, source: Path, *, guessed: Collection[str] = ()
) -> None:
    """Compares architectures.

    Args:
        found: settings that the weights are for.
        wanted: settings of the run.
        source: where the weights come from, for messages.
        guessed: settings that the weights do not state: those of the run hold.

    Raises:
        ValueError: with the flags that change the run's settings to those of the weights.
    """
    # The image size matters to none of these settings.
    ours, theirs = (make_backbone(config, image_size=config.patch_size) for config in (wanted, found))
    names, different, origin = _CONVOLUTIONAL_SETTINGS, ["variant"], found
    if isinstance(theirs, VisionTransformer):
        # Rotary positions fit any grid, and such networks have an epsilon of their own.
        rope = theirs.positions == "rope"
        names = (*_TRANSFORMER_SETTINGS, *(() if rope else ("position_resizing",)))
        guessed = set(guessed) - ({"norm_epsilon"} if rope else set())
    if type(ours) is type(theirs):
        compared = [name for name in names if name not in guessed]
        different, origin = [name for name in compared if getattr(ours, name) != getattr(theirs, name)], theirs
    if different:
        flags = " ".join(f"--config.backbone.{name}={format_setting(getattr(origin, name))}" for name in different)
        unclear = "num_heads" in guessed and "width" in different
        hint = "; it does not state num_heads: set what it was trained with" if unclear else ""
        raise ValueError(f"{source} holds another architecture than the run: add {flags}{hint}")


def _replace(state: TrainState, new: dict[str, Any], source: Path, *, keep: Sequence[str]) -> TrainState:
    """Puts arrays in the place of others of their shape, on the same devices.

    Args:
        state: state before.
        new: arrays of fields of the state.
        source: where they come from, for messages.
        keep: parts of a network that stay as they are.

    Raises:
        ValueError: listing every array that is unexpected, missing or of another shape.
    """
    old, arrays = {name: getattr(state, name) for name in new}, flatten_tree(new)
    kept = tuple(f"{network}/{part}/" for network in ("student", "teacher") for part in keep)
    expected = {name: shape for name, shape in shapes_of(old).items() if not f"{name}/".startswith(kept)}
    if problems := compare_shapes(arrays, expected):
        fields = "config.head, config.backbone and config.objective.masked"
        raise ValueError(f"{source} does not fit: {list_problems(problems)}; see {fields}")

    def put(path: Any, leaf: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name not in arrays:
            return leaf
        array = np.asarray(arrays[name], leaf.dtype)
        return jax.make_array_from_callback(array.shape, leaf.sharding, lambda index: array[index])

    return dataclasses.replace(state, **jax.tree_util.tree_map_with_path(put, old))
