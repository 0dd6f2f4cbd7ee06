"""Video object segmentation by carrying labels along, and DAVIS's measures of it."""

from croc_jax.evaluation.video.evaluate import VideoProtocol, VideoScore, evaluate_video
from croc_jax.evaluation.video.measures import boundary_accuracy, region_similarity, summarize
from croc_jax.evaluation.video.propagation import LabelQueue, PropagationConfig, segment

__all__ = [
    "LabelQueue", "PropagationConfig", "VideoProtocol", "VideoScore", "boundary_accuracy", "evaluate_video",
    "region_similarity", "segment", "summarize",
]  # fmt: skip
