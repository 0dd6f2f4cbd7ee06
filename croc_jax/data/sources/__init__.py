"""Where images come from: one interface for files, records, archives and data sets."""

from croc_jax.data.sources.base import ImageSource
from croc_jax.data.sources.files import FolderSource
from croc_jax.data.sources.registry import open_data, open_sources

__all__ = ["FolderSource", "ImageSource", "open_data", "open_sources"]
