"""Backbones and heads, as pure Flax modules."""

from croc_jax.models.config import BackboneConfig, HeadConfig
from croc_jax.models.heads import ProjectionHead, make_head
from croc_jax.models.vit import Features, VisionTransformer, patch_grid
from croc_jax.models.zoo import make_backbone

__all__ = [
    "BackboneConfig", "Features", "HeadConfig", "ProjectionHead", "VisionTransformer", "make_backbone", "make_head",
    "patch_grid",
]  # fmt: skip
