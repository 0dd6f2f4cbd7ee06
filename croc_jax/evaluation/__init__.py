"""Evaluation of frozen features: one module a protocol, and a registry of them."""

from croc_jax.evaluation.features import FrozenFeatures, MemoryBudget
from croc_jax.evaluation.registry import Protocol, Result, find_protocols, get_protocol

__all__ = ["FrozenFeatures", "MemoryBudget", "Protocol", "Result", "find_protocols", "get_protocol"]
