"""Float32 whatever JAX's mode: 64-bit types by default would change draws, shapes of states, and sums of checks."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax

_P = ParamSpec("_P")
_R = TypeVar("_R")


def in_float32(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Returns a function that computes as without JAX_ENABLE_X64, also while it is traced.

    Examples:
        >>> import jax.numpy as jnp
        >>> with jax.enable_x64(True):
        ...     print(in_float32(jnp.zeros)(2).dtype)
        float32
    """

    @functools.wraps(function)
    def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        if not jax.config.jax_enable_x64:  # pyright: ignore[reportAttributeAccessIssue]
            return function(*args, **kwargs)
        with jax.enable_x64(False):
            return function(*args, **kwargs)

    return wrapped
