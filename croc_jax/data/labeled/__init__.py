"""Data sets with pixel labels, in the folders that their owners distribute."""

from croc_jax.data.labeled.ade20k import open_ade20k
from croc_jax.data.labeled.cityscapes import open_cityscapes
from croc_jax.data.labeled.coco import open_coco_stuff, open_coco_things
from croc_jax.data.labeled.listing import draw_sample
from croc_jax.data.labeled.registry import KINDS, open_labeled
from croc_jax.data.labeled.voc import open_voc

__all__ = [
    "KINDS", "draw_sample", "open_ade20k", "open_cityscapes", "open_coco_stuff", "open_coco_things", "open_labeled",
    "open_voc",
]  # fmt: skip
