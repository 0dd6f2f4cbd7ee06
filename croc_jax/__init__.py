"""CrOC: dense visual representation learning without labels, in JAX and Flax."""

from typing import TYPE_CHECKING, Any

from croc_jax.version import __version__

if TYPE_CHECKING:
    from croc_jax.evaluation.backbones import load_backbone

__all__ = ["__version__", "load_backbone"]


def __getattr__(name: str) -> Any:
    """Imports what is asked for, and no more: the clustering alone needs none of it."""
    if name == "load_backbone":
        from croc_jax.evaluation.backbones import load_backbone

        return load_backbone
    raise AttributeError(f"module 'croc_jax' has no attribute {name!r}")
