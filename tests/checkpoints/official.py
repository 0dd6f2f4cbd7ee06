"""Weights under official names, read by what reads whole checkpoints."""

from croc_jax.checkpoints.infer_architecture import read_backbone
from croc_jax.checkpoints.official import read_head, split_official
from croc_jax.checkpoints.param_mapping import nest


def read_official(weights):
    """Returns {"backbone": ..., "head": ...}; there may be no head."""
    backbone, head, unknown = split_official(weights)
    found, (flat, problems) = read_backbone(backbone, default_heads=1), read_head(head)
    assert not (unknown or problems or found.problems), (unknown, problems, found.problems)
    return {"backbone": found.params} | ({"head": nest(flat)} if flat else {})
