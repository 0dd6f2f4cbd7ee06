"""Grids of patches, and how strides and dilations of a convolutional network make them."""

from collections.abc import Sequence
from typing import NamedTuple


class StagePlan(NamedTuple):
    """How a stage samples the output of the stage before it.

    Attributes:
        stride: stride of its first layer.
        before: dilation of the stage before it.
        dilation: dilation of its own layers.
    """

    stride: int
    before: int
    dilation: int


def patch_grid(size: tuple[int, int], patch_size: int) -> tuple[int, int]:
    """Returns rows and columns of patches of an image of that height and width.

    Raises:
        ValueError: if whole patches do not tile it.
    """
    height, width = size
    if height % patch_size or width % patch_size or not height or not width:
        raise ValueError(f"images of {height} x {width} pixels: whole patches of {patch_size} pixels must tile them")
    return height // patch_size, width // patch_size


def plan_strides(patch_size: int, *, stem: int, strides: Sequence[int]) -> list[StagePlan]:
    """Returns the stages of a network whose tokens lie `patch_size` pixels apart.

    A stage that would go beyond keeps its resolution, and its layers and all later ones look as
    much further apart (dilation), so that each has the receptive field that it was trained with.

    Args:
        patch_size: pixels between two tokens.
        stem: stride of what comes before the first stage.
        strides: strides of the stages without dilation.
    """
    plans, reached, dilation = [], stem, 1
    for stride in strides:
        before = dilation
        if reached * stride > patch_size:
            dilation, stride = dilation * stride, 1
        reached *= stride
        plans.append(StagePlan(stride, before, dilation))
    return plans
