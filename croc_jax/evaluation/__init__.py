"""What frozen features are worth: protocols, metrics, scores."""

from croc_jax.evaluation.examples import Example, Gallery, GalleryKeeper
from croc_jax.evaluation.features import (
    FrozenFeatures,
    ImageFeatures,
    LabeledTokens,
    MemoryBudget,
    TokenBatch,
    make_extract_fn,
)
from croc_jax.evaluation.linear import LinearFit, LinearHead, LinearProtocol, apply_head, fit_linear
from croc_jax.evaluation.metrics import Matching, class_iou, confusion_matrix, match_clusters, mean_iou
from croc_jax.evaluation.segmentation import LinearScore, evaluate_linear, score_linear

__all__ = [
    "Example", "FrozenFeatures", "Gallery", "GalleryKeeper", "ImageFeatures", "LabeledTokens", "LinearFit",
    "LinearHead", "LinearProtocol", "LinearScore", "Matching", "MemoryBudget", "TokenBatch", "apply_head", "class_iou",
    "confusion_matrix", "evaluate_linear", "fit_linear", "make_extract_fn", "match_clusters", "mean_iou",
    "score_linear",
]  # fmt: skip
