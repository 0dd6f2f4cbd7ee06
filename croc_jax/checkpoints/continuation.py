"""The first state of a run that goes on from other weights (post-training)."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from croc_jax.checkpoints.foreign import is_foreign, load_foreign_backbone
from croc_jax.checkpoints.names import Params, flatten
from croc_jax.checkpoints.official_run import load_networks
from croc_jax.checkpoints.orbax import restore_backbone
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


def first_state(recipe: Recipe, *, steps_per_epoch: int, mesh: Mesh) -> TrainState:
    """Returns the state before the first step, from the weights that `recipe.init_from` names, if any.

    Args:
        recipe: of the run; its schedules start at 0 in any case.
        steps_per_epoch: of the data.
        mesh: where the state lives.

    Raises:
        InitError: if the weights are for another architecture.
        FileNotFoundError: if there is no such file.
        ValueError: see `load_networks`, `load_foreign_backbone` and `restore_backbone`.
    """
    state = fresh_state(recipe, steps_per_epoch=steps_per_epoch, mesh=mesh)
    if not recipe.init_from.source:
        return state
    source = Path(recipe.init_from.source).expanduser()
    if recipe.init_from.parts == "networks":
        found = load_networks(source)
        check_architecture(found.config, recipe.backbone, source)
        grid = found.image_size // recipe.backbone.patch_size
        student, teacher = (
            {**params, "backbone": fit_positions(params["backbone"], recipe, grid=grid)}
            for params in (found.student, found.teacher)
        )
        new = {"student": student, "teacher": teacher, "center": found.centers[0], "center_dense": found.centers[1]}
    else:
        backbone = {"backbone": _load_backbone(source, recipe)}
        new = {"student": backbone, "teacher": backbone}
    return _replace(state, new, source)


def _load_backbone(source: Path, recipe: Recipe) -> Params:
    which = recipe.init_from.which
    if is_foreign(source):
        config, size, params, _ = load_foreign_backbone(source, which=which)
    else:
        theirs, params, _ = restore_backbone(source, which=which)
        config, size = theirs.backbone, theirs.data.views.crop_size
    check_architecture(config, recipe.backbone, source)
    return fit_positions(params, recipe, grid=size // config.patch_size)


def fit_positions(params: Params, recipe: Recipe, *, grid: int) -> Params:
    """Returns the parameters with a position embedding for the recipe's crops.

    Args:
        params: of a backbone.
        recipe: of the run.
        grid: rows (and columns) that the embedding was learned for.
    """
    size = recipe.data.views.crop_size
    rows, columns = patch_grid((size, size), recipe.backbone.patch_size)
    if "position_embedding" not in params or rows == grid:
        return params
    resized = resize_position_embedding(
        jnp.asarray(params["position_embedding"]),
        (grid, grid),
        (rows, columns),
        resizing=recipe.backbone.position_resizing,
    )
    return {**params, "position_embedding": np.asarray(resized)}


def check_architecture(found: BackboneConfig, wanted: BackboneConfig, source: Path) -> None:
    """Compares architectures.

    Raises:
        InitError: with the flags that make the recipe's that of the weights.
    """
    # Sizes of images matter to none of these settings.
    ours, theirs = (make_backbone(config, image_size=config.patch_size) for config in (wanted, found))
    if type(ours) is not type(theirs):
        different, origin = ["variant"], found
    else:
        is_transformer = isinstance(theirs, VisionTransformer)
        names = _TRANSFORMER_ARCHITECTURE if is_transformer else _CONVOLUTIONAL_ARCHITECTURE
        different, origin = [name for name in names if getattr(ours, name) != getattr(theirs, name)], theirs
    if different:
        flags = " ".join(f"--config.backbone.{name}={getattr(origin, name)}" for name in different)
        raise InitError(f"{source} holds another architecture than the recipe: add {flags}")


def _replace(state: TrainState, new: dict[str, Any], source: Path) -> TrainState:
    """Puts arrays in the place of others of their shape, on the same devices."""
    wrong = []

    def put(path: Any, old: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name not in arrays:
            return old
        array = np.asarray(arrays[name], old.dtype)
        if array.shape != old.shape:
            wrong.append(f"{name} is {array.shape}, not {old.shape}")
            return old
        return jax.make_array_from_callback(array.shape, old.sharding, lambda index: array[index])

    arrays = flatten(new)
    replaced = jax.tree_util.tree_map_with_path(put, {name: getattr(state, name) for name in new})
    known = {jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in _leaves(replaced)}
    wrong += [f"{name} has no place" for name in sorted(arrays.keys() - known)]
    if wrong:
        raise InitError(f"{source} does not fit the recipe: {'; '.join(wrong)}; see config.head and config.backbone")
    return dataclasses.replace(state, **replaced)


def _leaves(tree: Any) -> list[tuple[Any, Any]]:
    return jax.tree_util.tree_leaves_with_path(tree)
