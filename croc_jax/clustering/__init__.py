"""Cross-view online clustering on plain arrays; usable without the rest of the package."""

from croc_jax.clustering.api import FeatureClusters, cluster_features
from croc_jax.clustering.config import ClusteringConfig
from croc_jax.clustering.cross_view import Clustering, cluster_views, trace_merging, view_centroids
from croc_jax.clustering.positions import patch_positions

__all__ = [
    "Clustering", "ClusteringConfig", "FeatureClusters", "cluster_features", "cluster_views", "patch_positions",
    "trace_merging", "view_centroids",
]  # fmt: skip
