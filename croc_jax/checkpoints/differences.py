"""How far what was read back is from what was written."""

import numpy as np

from croc_jax.checkpoints.infer_architecture import compare_shapes, shapes_of
from croc_jax.checkpoints.vit_mapping import Params, flatten


def largest_difference(one: Params, other: Params) -> tuple[int, float]:
    """Returns how many arrays there are, and by how much any of their values differ at most.

    Args:
        one: arrays in dictionaries.
        other: alike.

    Raises:
        ValueError: naming every array that the other one lacks, has in excess, or has in another shape.
    """
    ours, theirs = flatten(one), flatten(other)
    if wrong := compare_shapes(theirs, shapes_of(one)):
        raise ValueError(f"what was read back is not what was written: {'; '.join(wrong)}")
    # A value that is no number counts, too.
    found = [float(np.max(np.abs(ours[name] - theirs[name]), initial=0.0)) for name in ours]
    return len(found), float(np.max(found))
