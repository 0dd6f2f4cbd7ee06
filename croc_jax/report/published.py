"""Scores that others published for the protocols of configs/eval, to show results beside.

A row holds the scores of one network by one protocol. To add one, append a `Published` to `PUBLISHED`: the protocol and
its variant as on the command line, the network as its owners call it, mean IoU (or what the protocol is known by) in
percent for each data set by its kind (`voc`, `ade20k`, `cityscapes`, ...), and the publication with its table. Only
numbers that were read in that table. docs/evaluation.md is filled from here.
"""

from collections.abc import Mapping
from typing import NamedTuple


class Published(NamedTuple):
    """Scores of one network.

    Attributes:
        config: config file and variant that follow the protocol, such as "linear.py:dinov2".
        network: method and architecture, such as "DINOv2 ViT-S/14".
        scores: main score in percent, by kind of data set.
        source: publication and table.
    """

    config: str
    network: str
    scores: Mapping[str, float]
    source: str


PUBLISHED: tuple[Published, ...] = ()
