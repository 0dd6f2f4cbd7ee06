"""Images: where they come from, their crops on the host, their colors on the device."""

import importlib
from typing import TYPE_CHECKING

from croc_jax.data.config import DataConfig, PhotometricConfig, ViewsConfig

if TYPE_CHECKING:
    from croc_jax.data.crops import two_views
    from croc_jax.data.decoding import DecodeError, decode
    from croc_jax.data.photometric import augment, normalize
    from croc_jax.data.pipeline import BatchIterator, CropDataset, DatasetError, HostBatch, make_dataset
    from croc_jax.data.sources import FolderSource, ImageSource, SourceError, open_data, open_sources

_HOMES = {
    "crops": ("two_views",),
    "decoding": ("DecodeError", "decode"),
    "photometric": ("augment", "normalize"),
    "pipeline": ("BatchIterator", "CropDataset", "DatasetError", "HostBatch", "make_dataset"),
    "sources": ("FolderSource", "ImageSource", "SourceError", "open_data", "open_sources"),
}

__all__ = [
    "BatchIterator",
    "CropDataset",
    "DataConfig",
    "DatasetError",
    "DecodeError",
    "FolderSource",
    "HostBatch",
    "ImageSource",
    "PhotometricConfig",
    "SourceError",
    "ViewsConfig",
    "augment",
    "decode",
    "make_dataset",
    "normalize",
    "open_data",
    "open_sources",
    "two_views",
]


def __getattr__(name: str) -> object:
    """Imports a reader when it is first used: settings alone load none of them."""
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
