"""Cross-view online clustering on plain arrays; usable without the other parts of the package."""

import importlib
from typing import TYPE_CHECKING

from croc_jax.clustering.config import ClusteringConfig

if TYPE_CHECKING:
    from croc_jax.clustering.api import FeatureClusters, cluster_features
    from croc_jax.clustering.cross_view import Clustering, cluster_views, trace_merging, view_centroids
    from croc_jax.clustering.positions import patch_positions

_HOMES = {
    "FeatureClusters": "api",
    "cluster_features": "api",
    "Clustering": "cross_view",
    "cluster_views": "cross_view",
    "trace_merging": "cross_view",
    "view_centroids": "cross_view",
    "patch_positions": "positions",
}

__all__ = [
    "Clustering", "ClusteringConfig", "FeatureClusters", "cluster_features", "cluster_views", "patch_positions",
    "trace_merging", "view_centroids",
]  # fmt: skip


def __getattr__(name: str) -> object:
    """Imports a function when it is first used: settings alone load neither ott nor JAX."""
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
