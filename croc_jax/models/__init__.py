"""Backbones and heads, as pure Flax modules."""

import importlib
from typing import TYPE_CHECKING

from croc_jax.models.config import BackboneConfig, HeadConfig

if TYPE_CHECKING:
    from croc_jax.models.batch_norm import update_batch_stats
    from croc_jax.models.features import Backbone, Features, Hidden, clustering_tokens
    from croc_jax.models.heads import ProjectionHead, make_head
    from croc_jax.models.patches import patch_grid
    from croc_jax.models.registry import make_backbone
    from croc_jax.models.vit import VisionTransformer

_HOMES = {
    "update_batch_stats": "batch_norm",
    "Backbone": "features",
    "Features": "features",
    "Hidden": "features",
    "clustering_tokens": "features",
    "ProjectionHead": "heads",
    "make_head": "heads",
    "patch_grid": "patches",
    "make_backbone": "registry",
    "VisionTransformer": "vit",
}

__all__ = [
    "Backbone", "BackboneConfig", "Features", "HeadConfig", "Hidden", "ProjectionHead", "VisionTransformer",
    "clustering_tokens", "make_backbone", "make_head", "patch_grid", "update_batch_stats",
]  # fmt: skip


def __getattr__(name: str) -> object:
    """Imports a network when it is first used: settings alone do not load Flax."""
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
