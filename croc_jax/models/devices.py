"""What "auto" means on each kind of device: precision, attention, and how blocks run."""

import functools
import logging
from typing import Any, NamedTuple

import jax.numpy as jnp

# Results of matrix products in a block, by the names under which blocks offer them to the backward pass.
PRODUCTS = ("qkv", "mixed", "middle", "hidden")
# What a block keeps for its backward pass; all else is recomputed. Keeping the scores of all pairs of tokens pays on
# CPU alone, as accelerators write and read them more slowly than they multiply. A TPU is fastest keeping nothing.
KEPT = {"cpu": (*PRODUCTS, "scores"), "cuda": PRODUCTS, "rocm": PRODUCTS, "tpu": ()}
# Computes in float32, and multiplies by parameters in bfloat16.
MIXED = "mixed"
# Where blocks are compiled one by one: `lax.scan` copies what they keep to stacks and back.
UNROLLED = ("cuda", "rocm")
# The oldest NVIDIA devices, by compute capability, whose cuDNN has flash attention.
_FLASH_CAPABILITY = 8.0
_logger = logging.getLogger(__name__)


class Execution(NamedTuple):
    """How a backbone runs on a kind of device.

    Attributes:
        dtype: type of the computation.
        multiply: type of the products with parameters.
        attention: "xla", "xla_tpu" or "cudnn".
        kept: names of what blocks keep for their backward pass.
        unrolled: whether blocks are compiled one by one, not as a loop.
    """

    dtype: jnp.dtype
    multiply: jnp.dtype
    attention: str
    kept: tuple[str, ...]
    unrolled: bool


def platform_of(device: Any) -> str:
    """Returns "cpu", "cuda", "rocm" or "tpu"; the device may be a description to compile for."""
    if device.platform not in ("gpu", "cuda", "rocm"):
        return device.platform
    described = f"{device.platform} {device.client.platform_version} {device.device_kind}".lower()
    return "rocm" if any(word in described for word in ("rocm", "amd", "gfx")) else "cuda"


def choose_execution(*, dtype: str, attention: str, remat: bool, head_width: int, device: Any) -> Execution:
    """Resolves the settings of a transformer that depend on the device.

    Args:
        dtype: "float32", "bfloat16", "mixed" or "auto".
        attention: "xla", "cudnn" or "auto".
        remat: keep nothing for the backward pass, whatever the device.
        head_width: features of an attention head.
        device: the device that computes, or one of several of its kind.

    Raises:
        ValueError: for another name, or for "cudnn" where it does not exist.
    """
    platform = platform_of(device)
    if dtype == MIXED:
        resolved, multiply = jnp.dtype("float32"), jnp.dtype("bfloat16")
    else:
        resolved = multiply = compute_dtype(dtype, device)
    return Execution(
        dtype=resolved,
        multiply=multiply,
        attention=choose_attention(attention, resolved, head_width=head_width, device=device),
        kept=() if remat else KEPT.get(platform, ()),
        # A loop compiles deep models, which recompute blocks, in a fraction of the time.
        unrolled=platform in UNROLLED and not remat,
    )


def compute_dtype(name: str, device: Any) -> jnp.dtype:
    """Resolves "auto" to bfloat16 on accelerators and float32 on CPU, where bfloat16 is slow.

    Raises:
        ValueError: for a name other than "auto", "float32" and "bfloat16"; "mixed" is for transformers alone.
    """
    if name == MIXED:
        raise ValueError(f"dtype={name!r}: for transformers alone; choose 'auto', 'float32' or 'bfloat16'")
    if name == "auto":
        name = "float32" if platform_of(device) == "cpu" else "bfloat16"
    if name not in ("float32", "bfloat16"):
        raise ValueError(f"dtype={name!r}: choose 'auto', 'float32', 'bfloat16' or, for a transformer, '{MIXED}'")
    return jnp.dtype(name)


def choose_attention(name: str, dtype: jnp.dtype, *, head_width: int, device: Any) -> str:
    """Resolves "auto": cuDNN's flash attention on CUDA where it exists, XLA's own elsewhere.

    Where CUDA and bfloat16 alone would suggest cuDNN, a warning says why it is not taken.

    Raises:
        ValueError: for another name, or for "cudnn" where it does not exist.
    """
    if name not in ("auto", "xla", "cudnn"):
        raise ValueError(f"attention={name!r}: choose 'auto', 'xla' or 'cudnn'")
    xla = "xla_tpu" if platform_of(device) == "tpu" else "xla"
    if name == "xla":
        return xla
    refusal = _refusal(dtype, head_width, device)
    if not refusal:
        return "cudnn"
    if name == "cudnn":
        raise ValueError(f"attention='cudnn': {refusal}; choose 'xla' or 'auto'")
    if platform_of(device) == "cuda":
        _warn_once(refusal)
    return xla


@functools.cache
def _warn_once(refusal: str) -> None:
    _logger.warning("attention: XLA's, as cuDNN's %s", refusal)


def _refusal(dtype: jnp.dtype, head_width: int, device: Any) -> str:
    """Returns why cuDNN's attention cannot run; empty if it can."""
    platform = platform_of(device)
    if platform != "cuda":
        return f"needs CUDA, not {platform}"
    if dtype not in (jnp.bfloat16, jnp.float16):
        return f"needs bfloat16, not {dtype}"
    capability = float(getattr(device, "compute_capability", _FLASH_CAPABILITY))
    if capability < _FLASH_CAPABILITY:
        return f"needs compute capability {_FLASH_CAPABILITY}, not {capability} of {device.device_kind}"
    if head_width % 8 or head_width > 128:
        return f"needs heads of a multiple of 8 features, 128 at most, not {head_width}"
    return ""
