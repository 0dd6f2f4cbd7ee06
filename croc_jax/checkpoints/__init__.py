"""Checkpoints of runs, and weights under other names."""

from croc_jax.checkpoints.manager import Checkpointer
from croc_jax.checkpoints.restore import CheckpointError, restore_backbone

__all__ = ["CheckpointError", "Checkpointer", "restore_backbone"]
