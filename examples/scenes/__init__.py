"""Synthetic scenes with exact pixel labels, made from a seed: labeled images without a download."""

from scenes.film import Frame, make_film, write_film
from scenes.folder import write_scenes
from scenes.scene import CLASS_NAMES, Scene, make_scene

__all__ = ["CLASS_NAMES", "Frame", "Scene", "make_film", "make_scene", "write_film", "write_scenes"]
