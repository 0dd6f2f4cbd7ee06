"""Checkpoints of runs, and weights under other names."""

from croc_jax.checkpoints.orbax import Checkpointer, CheckpointError, restore_backbone

__all__ = ["CheckpointError", "Checkpointer", "restore_backbone"]
