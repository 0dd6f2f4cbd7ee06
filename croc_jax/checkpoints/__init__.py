"""Checkpoints of runs, and weights under other names."""

from croc_jax.checkpoints.manager import Checkpointer, restore_backbone
from croc_jax.checkpoints.restore import CheckpointError

__all__ = ["CheckpointError", "Checkpointer", "restore_backbone"]
