"""Backbones and heads, as pure Flax modules."""

from croc_jax.models.batch_norm import update_batch_stats
from croc_jax.models.config import BackboneConfig, HeadConfig
from croc_jax.models.features import Backbone, Features, clustering_tokens
from croc_jax.models.heads import ProjectionHead, make_head
from croc_jax.models.patches import patch_grid
from croc_jax.models.registry import make_backbone
from croc_jax.models.vit import VisionTransformer

__all__ = [
    "Backbone", "BackboneConfig", "Features", "HeadConfig", "ProjectionHead", "VisionTransformer", "clustering_tokens",
    "update_batch_stats", "make_backbone", "make_head", "patch_grid",
]  # fmt: skip
