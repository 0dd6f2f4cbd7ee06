"""Weights under official names, read by what reads whole checkpoints."""

from croc_jax.checkpoints.infer_architecture import read_backbone
from croc_jax.checkpoints.official import read_head, split_official
from croc_jax.checkpoints.param_mapping import nest


def read_official(weights):
    """Returns {"backbone": ..., "head": ...}; there may be no head."""
    backbone, head, unknown = split_official(weights)
    found, (flat, problems) = read_backbone(backbone, default_heads=1), ({}, [])
    if head:
        flat, problems = read_head(head, width=found.width, layers=("last_layer", "last_layer_dense"))
    assert not (unknown or problems or found.problems), (unknown, problems, found.problems)
    return {"backbone": found.params} | ({"head": nest(flat)} if flat else {})
