"""Data sets that TensorFlow Datasets has prepared, read without TensorFlow."""

import os
import re
from collections.abc import Sequence
from typing import Any

from croc_jax.data.sources.base import SourceError

# A name may end in a version, such as my_set/config:1.0.0.
_SPEC = re.compile(r"(?P<name>[^:@]+(?::\d+\.[\d*]+\.[\d*]+)?)(?::(?P<split>[^@]+))?(?:@(?P<data_dir>.+))?")

# What tfds calls the class of an image.
LABEL = "label"


class TfdsSource:
    """The images of one split, as they are encoded there; other pictures are not decoded.

    Attributes:
        class_names: those of the feature "label"; none if there is no such feature.
    """

    class_names: tuple[str, ...]

    def __init__(self, name: str, split: str = "train", data_dir: str | None = None) -> None:
        """Opens a prepared data set.

        Args:
            name: such as "coco/2017" or "my_set/my_config:1.0.0".
            split: such as "train", "train[:10%]" or "train+unlabeled".
            data_dir: where it was prepared; by default where tfds does so.

        Raises:
            SourceError: if tfds is not installed, or the data set is not prepared in a format
                with random access, or has no such split, no images, or several per example.
        """
        self._arguments = name, split, data_dir
        self._feature, self._full_name, self.class_names, self._rows = _open(*self._arguments)
        self._length = len(self._rows)

    def __len__(self) -> int:
        """Returns the number of examples."""
        return self._length

    def __getitem__(self, index: int) -> bytes:
        """Returns an encoded image; raises OSError if it cannot be read."""
        return self._read(index, self._feature)

    def label(self, index: int) -> int:
        """Returns the class of an image, if there are `class_names`; raises OSError if it cannot be read."""
        return int(self._read(index, LABEL))

    def _read(self, index: int, feature: str) -> Any:
        if not 0 <= index < self._length:
            raise IndexError(f"image {index} of {self._length}")
        if self._rows is None:
            self._rows = _open(*self._arguments)[-1]
        try:
            return self._rows[index][feature]
        except (RuntimeError, ValueError) as error:
            raise OSError(f"{self.name(index)}: {error}") from error

    def name(self, index: int) -> str:
        """Returns NAME/VERSION:SPLIT:INDEX."""
        return f"{self._full_name}:{self._arguments[1]}:{index}"

    def __getstate__(self) -> dict[str, Any]:
        """Leaves the open files out: each process opens its own."""
        return self.__dict__ | {"_rows": None}


def parse_tfds(value: str) -> TfdsSource:
    """Opens `NAME[:SPLIT][@DATA_DIR]`.

    Raises:
        SourceError: for another form, and as `TfdsSource`.
    """
    parts = _SPEC.fullmatch(value)
    if parts is None:
        raise SourceError(f"tfds:{value}: write tfds:NAME[:SPLIT][@DATA_DIR], such as tfds:coco/2017:train@data/tfds")
    data_dir = parts["data_dir"]
    return TfdsSource(parts["name"], parts["split"] or "train", os.path.expanduser(data_dir) if data_dir else None)


def _open(name: str, split: str, data_dir: str | None) -> tuple[str, str, tuple[str, ...], Sequence[Any]]:
    """Returns the name of the image feature, the full name of the data set, its classes, and its examples."""
    try:
        import tensorflow_datasets as tfds  # pyright: ignore[reportMissingImports]
        from tensorflow_datasets.core import read_only_builder  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise SourceError(
            f"tfds:{name} needs TensorFlow Datasets ({error}): pip install 'croc_jax[tfds]' (TensorFlow is not needed)"
        ) from error
    where = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    remedy = f"prepare it once: tfds.builder({name!r}, data_dir={where!r}, file_format='array_record')"
    try:
        # From its files alone: the code of many data sets needs TensorFlow.
        builder: Any = read_only_builder.builder_from_files(name, data_dir=data_dir)
        feature, decoders = _find_images(tfds, name, builder.info.features)
        label: Any = dict(builder.info.features.items()).get(LABEL)
        class_names = tuple(label.names) if isinstance(label, tfds.features.ClassLabel) else ()
        return feature, builder.info.full_name, class_names, builder.as_data_source(split, decoders=decoders)
    except tfds.core.DatasetNotFoundError as error:
        raise SourceError(f"no data set {name} in {where}: {remedy}.download_and_prepare()") from error
    except NotImplementedError as error:
        raise SourceError(
            f"{name} in {where} is prepared in a format without random access: {remedy}.download_and_prepare(), "
            "in another folder"
        ) from error
    except SourceError:
        raise
    except (ValueError, RuntimeError, OSError) as error:
        raise SourceError(f"cannot open split {split!r} of {name} in {where}: {error}") from error


def _find_images(tfds: Any, name: str, features: Any) -> tuple[str, dict[str, Any]]:
    """Returns which feature is the image, and what keeps the pictures of an example encoded."""
    kinds = dict(features.items()) if hasattr(features, "items") else {}
    pictures = sorted(key for key, kind in kinds.items() if isinstance(kind, tfds.features.Image))
    images = [key for key in pictures if not isinstance(kinds[key], tfds.features.LabeledImage)]
    if "image" in images:
        images = ["image"]
    if not images:
        raise SourceError(f"the data set {name} has no image feature, only {', '.join(kinds)}: choose another")
    if len(images) > 1:
        raise SourceError(f"the data set {name} has several images an example ({', '.join(images)}), none called image")
    return images[0], {key: tfds.decode.SkipDecoding() for key in pictures}
