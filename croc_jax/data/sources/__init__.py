"""Where images come from: one interface for files, records, archives and data sets."""

from croc_jax.data.sources.arrayrecord import ArrayRecordSource
from croc_jax.data.sources.base import SUFFIXES, ImageSource, SourceError
from croc_jax.data.sources.files import FolderSource, ListSource
from croc_jax.data.sources.huggingface import HuggingFaceSource
from croc_jax.data.sources.layouts import open_coco, open_imagenet
from croc_jax.data.sources.mixture import JoinedSource, MixtureSource
from croc_jax.data.sources.registry import open_data, open_source, open_sources
from croc_jax.data.sources.tar import TarSource
from croc_jax.data.sources.tfds import TfdsSource

__all__ = [
    "SUFFIXES",
    "ArrayRecordSource",
    "FolderSource",
    "HuggingFaceSource",
    "ImageSource",
    "JoinedSource",
    "ListSource",
    "MixtureSource",
    "SourceError",
    "TarSource",
    "TfdsSource",
    "open_coco",
    "open_data",
    "open_imagenet",
    "open_source",
    "open_sources",
]
