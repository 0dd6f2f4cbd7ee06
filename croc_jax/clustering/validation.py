"""Reads and checks arrays of several libraries, random keys and grids, with errors of one line."""

import operator
from collections.abc import Mapping
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from croc_jax.clustering.config import ClusteringConfig

# Squares of these, summed over features, still fit float32.
LARGEST = 1e17
Numbers: TypeAlias = Array | np.ndarray


def read_numbers(name: str, value: ArrayLike) -> Numbers:
    """Returns real numbers as they are if they are an array of JAX, else as an array of NumPy.

    Args:
        name: the argument, for the message of an error.
        value: an array of JAX, NumPy or PyTorch, or nested lists.

    Raises:
        ValueError: if these are not real numbers of one shape.
    """
    try:
        array = value if isinstance(value, jax.Array) else _to_numpy(value)
    except Exception as error:
        # Each library raises errors of its own.
        raise ValueError(f"{name}: expected an array of numbers ({str(error).splitlines()[0][:80]})") from error
    if not any(jnp.issubdtype(array.dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_)):
        raise ValueError(f"{name} of {array.dtype}: expected an array of real numbers")
    return array


def _to_numpy(value: ArrayLike) -> Numbers:
    if hasattr(value, "detach"):
        # PyTorch: NumPy takes no tensor of a GPU, with gradients, or of bfloat16.
        tensor = value.detach().cpu()  # pyright: ignore[reportAttributeAccessIssue]
        return np.array(tensor.float() if "bfloat16" in str(tensor.dtype) else tensor)
    try:
        return np.asarray(value)
    except jax.errors.TracerArrayConversionError:
        return jnp.asarray(value)


def is_concrete(array: Numbers) -> bool:
    """Whether this process can read the values: they are not traced, nor on other hosts."""
    return isinstance(array, np.ndarray) or (not isinstance(array, Tracer) and array.is_fully_addressable)


def check_magnitudes(arrays: Mapping[str, Numbers]) -> None:
    """Checks values: arrays of NumPy on the host, those of JAX in one program that this waits for; never tracers.

    Args:
        arrays: real numbers, by the name of the argument.

    Raises:
        ValueError: for NaN, infinity, or numbers whose squares do not fit float32.
    """
    known = {name: array for name, array in arrays.items() if is_concrete(array)}
    on_device = {name: array for name, array in known.items() if isinstance(array, jax.Array)}
    found = {name: np.max(np.abs(known[name].astype(np.float32))) for name in known if name not in on_device}
    if on_device:
        with jax.ensure_compile_time_eval():
            found |= jax.device_get(_magnitudes(on_device))
    for name, magnitude in found.items():
        if not np.isfinite(magnitude):
            raise ValueError(f"{name}: expected finite numbers, found NaN or infinity (float32 ends at 3.4e38)")
        if magnitude > LARGEST:
            raise ValueError(f"{name}: expected numbers of magnitude {LARGEST:g} at most, found {magnitude:.3g}")


@jax.jit
def _magnitudes(arrays: dict[str, Array]) -> dict[str, Float[Array, ""]]:
    return {name: jnp.max(jnp.abs(array.astype(jnp.float32))) for name, array in arrays.items()}


def read_indices(
    value: ArrayLike, shape: tuple[int, ...], num_tokens: int, *, check: bool = True
) -> Int[Array, "*b_h k"]:
    """Returns the indices of the tokens that the first centroids are.

    Args:
        value: see `read_numbers`.
        shape: expected.
        num_tokens: the number of tokens that each set of indices chooses from, without replacement.
        check: whether to read the values.

    Raises:
        ValueError: for others than whole numbers of that shape, out of range, or repeated.
    """
    indices = read_numbers("init_indices", value)
    if indices.shape != shape or not jnp.issubdtype(indices.dtype, jnp.integer):
        raise ValueError(f"init_indices {indices.shape} {indices.dtype}: expected whole numbers of shape {shape}")
    if check and is_concrete(indices):
        ordered = np.sort(jax.device_get(indices), axis=-1)
        for found in (ordered.min(), ordered.max()):
            if not 0 <= found < num_tokens:
                raise ValueError(f"init_indices: expected numbers from 0 to {num_tokens - 1}, found {found}")
        twice = ordered[..., 1:][ordered[..., 1:] == ordered[..., :-1]]
        if twice.size:
            raise ValueError(f"init_indices: expected different tokens of each image and head, found {twice[0]} twice")
    return jnp.asarray(indices, jnp.int32)


def read_key(rng: Array | int) -> Array:
    """Returns a random key from a key of either kind or from a seed; raises ValueError for anything else."""
    if isinstance(rng, (int, np.integer)) and not isinstance(rng, bool) and -(2**63) <= rng < 2**63:
        return jax.random.key(rng)
    if isinstance(rng, (jax.Array, np.ndarray)):
        if rng.shape == () and jnp.issubdtype(rng.dtype, jax.dtypes.prng_key):
            return jnp.asarray(rng)
        if rng.shape == (2,) and rng.dtype == np.uint32:
            return jax.random.wrap_key_data(jnp.asarray(rng))
        given = f" {rng.shape} {rng.dtype}"
    else:
        given = f"={rng!r:.60}"
    raise ValueError(f"rng{given}: expected one key, such as jax.random.key(0), or a seed of 64 bits")


def read_grid(grid: tuple[int, int]) -> tuple[int, int]:
    """Returns rows and columns of patches; raises ValueError for others than two whole numbers of 1 or more."""
    try:
        rows, columns = map(operator.index, grid)
    except (TypeError, ValueError):
        rows = columns = 0
    if rows < 1 or columns < 1:
        raise ValueError(f"grid={grid!r:.60}: expected rows and columns of patches, such as (14, 14)")
    return rows, columns


def check_config(config: ClusteringConfig) -> None:
    """Raises ValueError for anything but a `ClusteringConfig`, such as a dictionary."""
    if not isinstance(config, ClusteringConfig):
        raise ValueError(f"config={config!r:.60}: expected a ClusteringConfig, such as ClusteringConfig(k_start=12)")
