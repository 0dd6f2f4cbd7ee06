"""The first state of a run that goes on from other weights (post-training)."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from croc_jax.checkpoints.infer_architecture import compare_shapes, shapes_of
from croc_jax.checkpoints.official import load_networks
from croc_jax.checkpoints.pretrained import load_foreign_backbone
from croc_jax.checkpoints.restore import restore_backbone
from croc_jax.checkpoints.vit_mapping import Params, flatten
from croc_jax.checkpoints.weight_files import is_foreign
from croc_jax.models import BackboneConfig, VisionTransformer, make_backbone, patch_grid
from croc_jax.models.position_embedding import resize_position_embedding
from croc_jax.training.config import Recipe
from croc_jax.training.start import fresh_state
from croc_jax.training.state import TrainState

# Of a backbone's module: what its weights are made for. A convolution fits any distance of tokens.
_CONVOLUTIONAL_ARCHITECTURE = ("width", "stages")
_TRANSFORMER_ARCHITECTURE = (
    "patch_size", "width", "depth", "num_heads", "mlp_ratio", "num_registers", "layer_scale", "mlp", "positions",
    "norm_epsilon",
)  # fmt: skip


class InitError(ValueError):
    """A run cannot start from the weights that its recipe names; the message lists what to change."""


def check_source(recipe: Recipe) -> None:
    """Raises FileNotFoundError if what `recipe.init_from` names is not there; looks no further."""
    source = recipe.init_from.source
    if source and not Path(source).expanduser().exists():
        raise FileNotFoundError(f"init_from.source={source}: there is no such file or folder")


def first_state(
    recipe: Recipe, *, steps_per_epoch: int, mesh: Mesh, say: Callable[[str], None] = lambda line: None
) -> TrainState:
    """Returns the state before the first step, from the weights that `recipe.init_from` names, if any.

    Args:
        recipe: of the run; its schedules start at 0 in any case.
        steps_per_epoch: of the data.
        mesh: where the state lives.
        say: is given a line on what the weights leave out, and what starts anew for that.

    Raises:
        InitError: if the weights are for another architecture, listing what fits no place of the
            recipe's networks and what these lack.
        FileNotFoundError: if there is no such file.
        ValueError: see `load_networks`, `load_foreign_backbone` and `restore_backbone`.
    """
    make = functools.partial(fresh_state, recipe, steps_per_epoch=steps_per_epoch, mesh=mesh)
    if not recipe.init_from.source:
        return make()
    source = Path(recipe.init_from.source).expanduser()
    if recipe.init_from.parts == "backbone":
        backbone = {"backbone": _load_backbone(source, recipe)}
        new, fresh = {"student": backbone, "teacher": backbone}, ("head",)
    else:
        new, fresh = _load_networks(source, recipe)
        if fresh:
            say(f"{source} has no head for centroids, as runs of DINO: that layer and its center start anew")
    return _replace(make(), new, source, fresh=fresh)


def _load_networks(source: Path, recipe: Recipe) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Returns fields of a state by name, and the parts of the networks that start anew."""
    found = load_networks(source, default_heads=_heads_of(recipe.backbone))
    check_architecture(found.config, recipe.backbone, source, guessed=found.guessed)
    grid, resizing = found.image_size // found.config.patch_size, found.config.position_resizing
    student, teacher = (
        {**params, "backbone": fit_positions(params["backbone"], recipe, grid=grid, resizing=resizing)}
        for params in (found.student, found.teacher)
    )
    center, center_dense = found.centers
    new = {"student": student, "teacher": teacher, "center": center}
    if center_dense is None:
        return new, ("head/last_layer_dense",)
    return {**new, "center_dense": center_dense}, ()


def _load_backbone(source: Path, recipe: Recipe) -> Params:
    which = recipe.init_from.which
    if is_foreign(source):
        heads = _heads_of(recipe.backbone)
        config, size, params, _, guessed = load_foreign_backbone(source, which=which, default_heads=heads)
    else:
        theirs, params, _ = restore_backbone(source, which=which)
        config, size = theirs.backbone, theirs.data.views.crop_size
        guessed = {}
    check_architecture(config, recipe.backbone, source, guessed=guessed)
    grid, resizing = size // config.patch_size, config.position_resizing
    return fit_positions(params, recipe, grid=grid, resizing=resizing)


def fit_positions(params: Params, recipe: Recipe, *, grid: int, resizing: str) -> Params:
    """Returns the parameters with a position embedding for the recipe's crops.

    Args:
        params: of a backbone.
        recipe: of the run.
        grid: rows (and columns) that the embedding was learned for.
        resizing: how the program resizes it that the weights come from.
    """
    size = recipe.data.views.crop_size
    rows, columns = patch_grid((size, size), recipe.backbone.patch_size)
    if "position_embedding" not in params or rows == grid:
        return params
    resized = resize_position_embedding(
        jnp.asarray(params["position_embedding"]), (grid, grid), (rows, columns), resizing=resizing
    )
    return {**params, "position_embedding": np.asarray(resized)}


def _heads_of(config: BackboneConfig) -> int | None:
    """Returns how many heads a transformer has, or None for a convolutional network."""
    return getattr(make_backbone(config, image_size=config.patch_size), "num_heads", None)


def check_architecture(
    found: BackboneConfig, wanted: BackboneConfig, source: Path, *, guessed: Iterable[str] = ()
) -> None:
    """Compares architectures.

    Args:
        found: what the weights are for.
        wanted: the recipe's.
        source: of the weights.
        guessed: settings that the weights do not tell: the recipe's are taken.

    Raises:
        InitError: with the flags that make the recipe's that of the weights.
    """
    # Sizes of images matter to none of these settings.
    ours, theirs = (make_backbone(config, image_size=config.patch_size) for config in (wanted, found))
    if type(ours) is not type(theirs):
        different, origin = ["variant"], found
    else:
        names = _CONVOLUTIONAL_ARCHITECTURE
        if isinstance(theirs, VisionTransformer):
            # Rotations fit any grid.
            resizing = ("position_resizing",) if theirs.positions == "learned" else ()
            names = (*_TRANSFORMER_ARCHITECTURE, *resizing)
        # Networks that rotate have an epsilon of their own, whatever a recipe has by default.
        trusted = ("norm_epsilon",) if getattr(theirs, "positions", None) == "rope" else ()
        compared = [name for name in names if name not in guessed or name in trusted]
        different, origin = [name for name in compared if getattr(ours, name) != getattr(theirs, name)], theirs
    if different:
        flags = " ".join(f"--config.backbone.{name}={getattr(origin, name)}" for name in different)
        unclear = "num_heads" in guessed and "width" in different
        hint = "; it does not tell num_heads: set what it was trained with" if unclear else ""
        raise InitError(f"{source} holds another architecture than the recipe: add {flags}{hint}")


def _replace(state: TrainState, new: dict[str, Any], source: Path, *, fresh: Sequence[str]) -> TrainState:
    """Puts arrays in the place of others of their shape, on the same devices.

    Args:
        state: before.
        new: arrays of fields of the state.
        source: where they come from.
        fresh: parts of a network that stay as they are.

    Raises:
        InitError: listing every array without a place, place without an array, and other shape.
    """
    old, arrays = {name: getattr(state, name) for name in new}, flatten(new)
    starts = tuple(f"{network}/{part}/" for network in ("student", "teacher") for part in fresh)
    expected = {name: shape for name, shape in shapes_of(old).items() if not name.startswith(starts)}
    if wrong := compare_shapes(arrays, expected):
        raise InitError(f"{source} does not fit the recipe: {'; '.join(wrong)}; see config.head and config.backbone")

    def put(path: Any, leaf: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name not in arrays:
            return leaf
        array = np.asarray(arrays[name], leaf.dtype)
        return jax.make_array_from_callback(array.shape, leaf.sharding, lambda index: array[index])

    return dataclasses.replace(state, **jax.tree_util.tree_map_with_path(put, old))
