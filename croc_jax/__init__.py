"""CrOC in JAX: dense visual representation learning from uncurated images."""
