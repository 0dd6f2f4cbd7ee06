"""Data sets that TensorFlow Datasets has prepared, read without TensorFlow."""

import os
import re
from collections.abc import Iterator

from croc_jax.data.sources.arrayrecord import Records
from croc_jax.data.sources.base import find_image_feature, split_choice
from croc_jax.data.sources.shards import describe_shard
from croc_jax.data.stored_arrays import write_npy
from croc_jax.machine_errors import from_library, is_machine_error

# A name may end in a version, such as my_set/config:1.0.0.
_SPEC = re.compile(r"(?P<name>[^:@]+(?::\d+\.[\d*]+\.[\d*]+)?)(?::(?P<split>[^@]+))?(?:@(?P<data_dir>.+))?", re.DOTALL)
# What tfds calls the class of an image.
_LABEL = "label"


class TfdsSource:
    """The images of one split as they are encoded there, named NAME/VERSION:SPLIT:INDEX.

    Attributes:
        class_names: names of the feature "label"; empty if there is no such feature.
    """

    def __init__(self, name: str, split: str = "train", data_dir: str | None = None, feature: str = "") -> None:
        """Opens a prepared data set.

        Args:
            name: such as "coco/2017" or "my_set/my_config:1.0.0".
            split: such as "train", "train[:10%]" or "train+unlabeled".
            data_dir: where it was prepared; by default tfds' own folder.
            feature: which image of an example, where it has several; by default the one called image.

        Raises:
            ValueError: if tfds is not installed, or the data set is not prepared in a format
                with random access, or has no such split, no images, or several an example and no choice.
        """
        self._arguments = name, split, data_dir, feature
        try:
            import tensorflow_datasets as tfds  # pyright: ignore[reportMissingImports]
            from tensorflow_datasets.core import read_only_builder  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ValueError(
                f"tfds:{name} needs TensorFlow Datasets ({error}): pip install 'croc_jax[tfds]' "
                "(TensorFlow is not needed)"
            ) from error
        where = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
        remedy = f"prepare it once: tfds.builder({name!r}, data_dir={where!r}, file_format='array_record')"
        try:
            # From its files alone: the code of many data sets needs TensorFlow.
            builder = read_only_builder.builder_from_files(name, data_dir=data_dir)
        except tfds.core.DatasetNotFoundError as error:
            raise ValueError(f"no data set {name} in {where}: {remedy}.download_and_prepare()") from error
        except Exception as error:  # A library for the bucket is missing, or a file is damaged, by many parsers.
            if is_machine_error(error):
                raise
            raise ValueError(f"cannot open {name} in {where}: {' '.join(str(error).split())}") from error
        kinds = dict(builder.info.features.items())
        label = kinds.get(_LABEL)
        is_class = isinstance(label, tfds.features.ClassLabel)
        self.class_names: tuple[str, ...] = tuple(label.names) if label is not None and is_class else ()
        pictures = sorted(key for key, kind in kinds.items() if isinstance(kind, tfds.features.Image))
        images = [key for key in pictures if not isinstance(kinds[key], tfds.features.LabeledImage)]
        nested = [key for key, kind in kinds.items() if key not in pictures and "Image(" in repr(kind)]
        # Such as the bands of a satellite. Beside images, an array may be anything.
        arrays = [
            key for key, kind in kinds.items() if type(kind) is tfds.features.Tensor and len(kind.shape) in (2, 3)
        ]
        self._feature = find_image_feature(
            name,
            arrays if feature in arrays else images or arrays,
            list(kinds),
            nested=nested,
            chosen=feature,
            form=f"tfds:{name}:{split}@{data_dir or ''}@",
        )
        self._name = f"{builder.info.full_name}:{split}"
        try:
            encoded = {key: tfds.decode.SkipDecoding() for key in pictures}
            self._rows = builder.as_data_source(split, decoders=encoded)
            self._files = builder.info.splits[split].file_instructions
            if builder.info.file_format is not None and builder.info.file_format.value == "array_record":
                # tfds keeps all files open that it has read from.
                self._rows.data_source = Records(
                    [(os.fspath(part.filename), part.skip, part.take) for part in self._files]
                )
        except NotImplementedError as error:
            raise ValueError(
                f"{name} in {where} is prepared in a format without random access: {remedy}.download_and_prepare(), "
                "in another folder"
            ) from error
        except (ValueError, RuntimeError, OSError) as error:
            raise ValueError(f"cannot open split {split!r} of {name} in {where}: {error}") from error

    def __len__(self) -> int:
        """Returns the number of examples."""
        return len(self._rows)

    def __getitem__(self, index: int) -> bytes:
        """Returns an encoded image, of an array the contents of a .npy file; raises OSError if it cannot be read."""
        image = self._read(index)[self._feature]
        return image if isinstance(image, bytes) else write_npy(image)

    def label(self, index: int) -> int:
        """Returns the class of an image if there are `class_names`; raises OSError if it cannot be read."""
        return int(self._read(index)[_LABEL])

    def name(self, index: int) -> str:
        """Returns NAME/VERSION:SPLIT:INDEX."""
        return f"{self._name}:{index}"

    def entries(self) -> Iterator[tuple[str, int]]:
        """Yields what identifies each file, with the rows of it that are read."""
        # A data set may lie in a bucket, which tfds reads by this library.
        from etils import epath

        for part in self._files:
            name, size = describe_shard(epath.Path(part.filename))  # pyright: ignore[reportArgumentType]
            yield f"{name}[{part.skip}:{part.take}]", size
        yield self._feature, len(self)

    def __reduce__(self) -> tuple[type["TfdsSource"], tuple[str, str, str | None, str]]:
        """Opens the data set again in each worker process."""
        return TfdsSource, self._arguments

    def _read(self, index: int) -> dict:
        try:
            return self._rows[index]
        except (RuntimeError, ValueError) as error:
            raise from_library(error, self.name(index)) from error


def open_tfds(value: str) -> TfdsSource:
    """Opens `NAME[:SPLIT][@DATA_DIR[@FEATURE]]`, of which DATA_DIR may be empty.

    Raises:
        ValueError: for another form, and as `TfdsSource`.
    """
    parts = _SPEC.fullmatch(value)
    if parts is None:
        raise ValueError(
            f"tfds:{value}: write tfds:NAME[:SPLIT][@DATA_DIR[@FEATURE]], such as coco/2017:train@data/tfds"
        )
    data_dir, feature = split_choice(parts["data_dir"] or "")
    return TfdsSource(parts["name"], parts["split"] or "train", os.path.expanduser(data_dir) or None, feature)
