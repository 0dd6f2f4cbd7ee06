"""Labeled data sets, in the folders of their original distributions."""

from croc_jax.data.labeled.registry import KINDS, open_labeled

__all__ = ["KINDS", "open_labeled"]
