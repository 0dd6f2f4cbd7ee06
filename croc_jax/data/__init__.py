"""Images: where they come from, their crops on the host, their colors on the device."""

from croc_jax.data.config import DataConfig, PhotometricConfig, ViewsConfig
from croc_jax.data.crops import two_views
from croc_jax.data.decoding import DecodeError, decode
from croc_jax.data.photometric import augment, normalize
from croc_jax.data.pipeline import BatchIterator, CropDataset, DatasetError, HostBatch, make_dataset
from croc_jax.data.sources import FolderSource, ImageSource, SourceError, open_data, open_sources

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
