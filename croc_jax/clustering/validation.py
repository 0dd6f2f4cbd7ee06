"""Reads what callers hand over: arrays of any library, keys and grids; what does not fit is named in one line."""

import operator
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from croc_jax.clustering.config import ClusteringConfig

# Squares of these, summed over features, still fit float32.
LARGEST = 1e17
_REAL = (jnp.floating, jnp.integer, jnp.bool_)


def read_numbers(name: str, value: Any) -> Array:
    """Returns an array of NumPy, JAX or, through DLPack, of another library, or nested lists, as one of JAX.

    Args:
        name: of the argument.
        value: whatever was given.

    Raises:
        ValueError: if these are not real numbers of one shape.
    """
    try:
        if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(value)):
            array = jnp.asarray(value)
        else:
            # Constants of a compiled function are checked as well.
            with jax.ensure_compile_time_eval():
                array = jnp.asarray(jax.tree.map(_import, value))
    except Exception as error:
        # Each library has errors of its own.
        raise ValueError(f"{name}: expected an array of numbers ({str(error).splitlines()[0][:80]})") from error
    if not any(jnp.issubdtype(array.dtype, kind) for kind in _REAL):
        raise ValueError(f"{name} of {array.dtype}: expected real numbers")
    return array


def _import(value: Any) -> Any:
    """Copies arrays of other libraries: whoever changes theirs later changes none of ours."""
    if isinstance(value, (np.ndarray, jax.Array)) or not hasattr(value, "__dlpack__"):
        return value
    # PyTorch hands over no tensor that needs gradients.
    value = value.detach() if hasattr(value, "detach") else value
    try:
        return _copy(value)
    except Exception:
        # Such as one on a device that JAX does not have, or with gaps between its numbers.
        value = value.cpu() if hasattr(value, "cpu") else value
        return _copy(value.contiguous()) if hasattr(value, "contiguous") else np.asarray(value)


def _copy(value: Any) -> Array:
    # The option of `from_dlpack` to copy shares memory all the same in some versions.
    return jnp.array(jnp.from_dlpack(value), copy=True).block_until_ready()


def is_concrete(array: Array) -> bool:
    """Whether this process can look at the values."""
    return not isinstance(array, Tracer) and array.is_fully_addressable


def check_magnitudes(arrays: Mapping[str, tuple[Array, float]]) -> None:
    """Looks at all values once, on the device; those of tracers are not known yet, and pass.

    Args:
        arrays: by the name of the argument, with the largest magnitude that is of use.

    Raises:
        ValueError: for NaN, infinity, or a larger magnitude.
    """
    known = {name: pair for name, pair in arrays.items() if is_concrete(pair[0])}
    if not known:
        return
    with jax.ensure_compile_time_eval():
        found = jax.device_get(_magnitudes([array for array, _ in known.values()]))
    for (name, (_, largest)), magnitude in zip(known.items(), found, strict=True):
        if not np.isfinite(magnitude):
            raise ValueError(f"{name}: expected finite numbers, found NaN or infinity (float32 ends at 3.4e38)")
        if magnitude > largest:
            raise ValueError(f"{name}: expected numbers of magnitude {largest:g} at most, found {magnitude:.3g}")


@jax.jit
def _magnitudes(arrays: list[Array]) -> Float[Array, " a"]:
    return jnp.stack([jnp.max(jnp.abs(array.astype(jnp.float32))) for array in arrays])


def read_indices(value: Any, shape: tuple[int, ...], num_tokens: int) -> Int[Array, "..."]:
    """Returns indices of the first centroids' tokens.

    Args:
        value: whatever was given.
        shape: expected.
        num_tokens: that each set of indices chooses from, without replacement.

    Raises:
        ValueError: for others than whole numbers of that shape, out of range, or repeated.
    """
    indices = read_numbers("init_indices", value)
    if indices.shape != shape or not jnp.issubdtype(indices.dtype, jnp.integer):
        raise ValueError(f"init_indices {indices.shape} {indices.dtype}: expected whole numbers of shape {shape}")
    if is_concrete(indices):
        # JAX would wrap what 32 bits do not hold.
        ordered = np.sort(value if isinstance(value, np.ndarray) else jax.device_get(indices), axis=-1)
        for found in (ordered.min(), ordered.max()):
            if not 0 <= found < num_tokens:
                raise ValueError(f"init_indices: expected numbers from 0 to {num_tokens - 1}, found {found}")
        twice = ordered[..., 1:][ordered[..., 1:] == ordered[..., :-1]]
        if twice.size:
            raise ValueError(f"init_indices: expected different tokens of each image and head, found {twice[0]} twice")
    return indices.astype(jnp.int32)


def read_key(rng: Any) -> Array:
    """Returns a key for random numbers.

    Args:
        rng: one of JAX, of either kind, or a seed.

    Raises:
        ValueError: for anything else.
    """
    if isinstance(rng, (int, np.integer)) and not isinstance(rng, bool) and -(2**63) <= rng < 2**63:
        return jax.random.key(rng)
    if isinstance(rng, (jax.Array, np.ndarray)):
        if rng.shape == () and jnp.issubdtype(rng.dtype, jax.dtypes.prng_key):
            return rng  # pyright: ignore[reportReturnType]
        if rng.shape in ((2,), (4,)) and rng.dtype == np.uint32:
            return jnp.asarray(rng)
        rng = f" {rng.shape} {rng.dtype}"
    else:
        rng = f"={rng!r:.60}"
    raise ValueError(f"rng{rng}: expected one key, such as jax.random.key(0), or a seed of 64 bits")


def read_grid(grid: Any) -> tuple[int, int]:
    """Returns rows and columns of patches.

    Args:
        grid: whatever was given.

    Raises:
        ValueError: for others than two whole numbers of 1 or more.
    """
    try:
        rows, columns = map(operator.index, grid)
    except (TypeError, ValueError):
        rows = columns = 0
    if rows < 1 or columns < 1:
        raise ValueError(f"grid={grid!r:.60}: expected rows and columns of patches, such as (14, 14)")
    return rows, columns


def read_config(config: Any) -> ClusteringConfig:
    """Returns the settings; raises ValueError for anything else."""
    if not isinstance(config, ClusteringConfig):
        raise ValueError(f"config={config!r:.60}: expected a ClusteringConfig, such as ClusteringConfig(k_start=12)")
    return config
