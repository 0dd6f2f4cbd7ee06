"""Sources by the names that a config or a command line gives them; a new kind is one file and one line here."""

from collections.abc import Callable, Sequence

from croc_jax.data.config import DataConfig
from croc_jax.data.sources.arrayrecord import ArrayRecordSource
from croc_jax.data.sources.base import ImageSource
from croc_jax.data.sources.combined import CombinedSource
from croc_jax.data.sources.files import FolderSource, open_coco, open_coco_plus, open_imagenet, open_list
from croc_jax.data.sources.huggingface import HuggingFaceSource
from croc_jax.data.sources.tar import TarSource
from croc_jax.data.sources.tfds import open_tfds
from croc_jax.data.sources.windows import WindowSource
from croc_jax.data.specs import parse_spec
from croc_jax.pixel_format import RGB8, PixelFormat

# The form of a value, and what opens it.
KINDS: dict[str, tuple[str, Callable[[str], ImageSource]]] = {
    "folder": ("PATH", FolderSource),
    "list": ("FILE", open_list),
    "coco": ("ROOT", open_coco),
    "coco+": ("ROOT", open_coco_plus),
    "imagenet": ("ROOT", open_imagenet),
    "tfds": ("NAME[/CONFIG][:VERSION][:SPLIT][@DATA_DIR[@FEATURE]]", open_tfds),
    "arrayrecord": ("PATHS", ArrayRecordSource),
    "tar": ("PATHS[@EXTENSION]", TarSource),
    "hf": ("FOLDER[/SPLIT][@COLUMN]", HuggingFaceSource),
}


def open_data(config: DataConfig) -> ImageSource:
    """Returns the images of a run: those of the folders, then those of the sources.

    Raises:
        ValueError: if there are none, or a source cannot be opened.
    """
    specs = [*(f"folder:{folder}" for folder in config.folders), *config.sources]
    if not specs:
        raise ValueError(
            "data.folders is empty, and so is data.sources: name folders of images (data.folders=PATH) "
            "or other sources (data.sources=KIND:VALUE, such as coco+:path/to/coco)"
        )
    return open_sources(specs, config.weights, window=config.window, pixels=config.pixels)


def open_sources(
    specs: Sequence[str], weights: Sequence[float] = (), *, window: int = 0, pixels: PixelFormat = RGB8
) -> ImageSource:
    """Returns the images of one or more sources.

    Args:
        specs: the sources, each KIND:VALUE, or the path of a folder of images.
        weights: one a source to mix them in these shares; without, they follow one another.
        window: side in pixels of the windows that larger images are divided into; 0 for none.
        pixels: format of the images, which matters to windows alone.

    Raises:
        ValueError: for an unknown kind, or a source that cannot be opened, or not be divided.
    """
    forms, sources = {kind: form for kind, (form, _) in KINDS.items()}, []
    for spec in specs:
        kind, value = parse_spec(spec, forms, what="source of images")
        source = KINDS[kind][1](value)
        sources.append(WindowSource(source, window, pixels, spec=spec) if window else source)
    return sources[0] if len(sources) == 1 else CombinedSource(sources, weights)
