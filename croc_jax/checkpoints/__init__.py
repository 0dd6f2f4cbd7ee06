"""Checkpoints of runs, and weights under other names."""

from croc_jax.checkpoints.orbax import Checkpointer, restore_backbone
from croc_jax.checkpoints.reading import CheckpointError

__all__ = ["CheckpointError", "Checkpointer", "restore_backbone"]
