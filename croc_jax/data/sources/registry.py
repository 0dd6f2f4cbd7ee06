"""Sources by the names that a config or a command line gives them."""

import os
import re
from collections.abc import Callable, Sequence

from croc_jax.data.config import DataConfig
from croc_jax.data.sources.arrayrecord import ArrayRecordSource
from croc_jax.data.sources.base import ImageSource, SourceError
from croc_jax.data.sources.files import FolderSource, ListSource
from croc_jax.data.sources.huggingface import HuggingFaceSource
from croc_jax.data.sources.layouts import open_coco, open_imagenet
from croc_jax.data.sources.mixture import JoinedSource, MixtureSource
from croc_jax.data.sources.tar import TarSource
from croc_jax.data.sources.tfds import parse_tfds


def _open_folder(folder: str) -> ImageSource:
    return FolderSource(folder, setting="the source")


# What opens each kind, and the form of its value.
_KINDS: dict[str, tuple[Callable[[str], ImageSource], str]] = {
    "folder": (_open_folder, "PATH"),
    "list": (ListSource, "FILE"),
    "coco": (open_coco, "ROOT"),
    "coco+": (lambda root: open_coco(root, unlabeled=True), "ROOT"),
    "imagenet": (open_imagenet, "ROOT"),
    "tfds": (parse_tfds, "NAME[:SPLIT][@DATA_DIR]"),
    "arrayrecord": (ArrayRecordSource, "PATHS"),
    "tar": (TarSource, "PATHS"),
    "hf": (HuggingFaceSource, "FOLDER"),
}


def open_data(config: DataConfig) -> ImageSource:
    """Returns the images of a run: those of the folders, then those of the sources.

    Raises:
        SourceError: if there are none, or a source cannot be opened.
    """
    if not config.folders and not config.sources:
        raise SourceError(
            "data.folders is empty, and so is data.sources: name folders of images (--config.data.folders=PATH) "
            "or other sources (--config.data.sources=KIND:VALUE, such as coco+:path/to/coco)"
        )
    sources = [*map(FolderSource, config.folders), *map(open_source, config.sources)]
    return _combine(sources, config.weights)


def open_sources(specs: Sequence[str], weights: Sequence[float] = ()) -> ImageSource:
    """Returns the images of one or more sources.

    Args:
        specs: of the sources, each KIND:VALUE, or the path of a folder of images.
        weights: one a source to mix them in these shares; without, they are joined in order.

    Raises:
        SourceError: for no specs, an unknown kind, or a source that cannot be opened.
    """
    if not specs:
        raise SourceError("no sources of images: name one or more")
    return _combine([open_source(spec) for spec in specs], weights)


def open_source(spec: str) -> ImageSource:
    """Returns the images of one source.

    Args:
        spec: KIND:VALUE, or the path of a folder of images.

    Raises:
        SourceError: for an unknown kind, or a source that cannot be opened.
    """
    kind, value = _split(spec)
    if kind not in _KINDS:
        forms = ", ".join(f"{name}:{form}" for name, (_, form) in _KINDS.items())
        hint = f"; write folder:{spec} for a folder of this name" if os.path.isdir(spec) else ""
        raise SourceError(f"unknown kind of source {kind!r} in {spec}: choose one of {forms}, or a folder{hint}")
    if not value:
        raise SourceError(f"the source {spec} names nothing: write {kind}:{_KINDS[kind][1]}")
    return _KINDS[kind][0](os.path.expanduser(value))


def _split(spec: str) -> tuple[str, str]:
    """Returns kind and value; what has no kind is a folder."""
    parts = re.fullmatch(r"([\w+-]+):(.*)", spec, re.DOTALL)
    return (parts[1], parts[2]) if parts else ("folder", spec)


def _combine(sources: list[ImageSource], weights: Sequence[float]) -> ImageSource:
    if weights:
        return MixtureSource(sources, weights)
    return sources[0] if len(sources) == 1 else JoinedSource(sources)
